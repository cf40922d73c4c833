"""DVC's graph as a list of stages. The graph is dvc.yaml's; nothing here repeats it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml: the stages it comes after, and whether it computes on the device."""

    name: str
    after: tuple[str, ...]
    uses_device: bool
    always: bool = False
    """It runs every time, since what it looks at lies where DVC does not look."""


def read_graph(root: Path) -> list[Stage]:
    """The stages of `root`'s dvc.yaml, each after those it depends on; stages at one height in alphabetical order.

    A stage uses the device when our program has a model going in or coming out, a path in `models/`.
    `Repo().index.graph` is not public API of DVC; an edge points to the dependency, and data sources (`*.dvc` files)
    stand in it too and are left out.
    """
    import networkx
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

    with Repo(str(root)) as repo:
        graph = repo.index.graph
        nodes = {stage.name: stage for stage in graph.nodes if isinstance(stage, PipelineStage)}
        names = networkx.DiGraph()
        names.add_nodes_from(nodes)
        names.add_edges_from((b.name, a.name) for a, b in graph.edges if {a, b} <= set(nodes.values()))
        return [
            Stage(
                name=name,
                after=tuple(sorted(names.predecessors(name))),
                uses_device=str(nodes[name].cmd).startswith("densitywatch ")
                and any(part.def_path.startswith("models/") for part in (*nodes[name].deps, *nodes[name].outs)),
                always=nodes[name].always_changed,
            )
            for name in networkx.lexicographical_topological_sort(names)
        ]


def with_ancestors(stages: list[Stage], names: set[str]) -> set[str]:
    """`names` and every stage that one of them comes after; `stages` as `read_graph` gives them."""
    wanted = set(names)
    for stage in reversed(stages):
        if stage.name in wanted:
            wanted |= set(stage.after)
    return wanted
