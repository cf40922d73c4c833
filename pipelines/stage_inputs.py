"""What one stage needs from the stages before it, and which of its files DVC's remote does not carry."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines import arrivals


@dataclass
class Inputs:
    """Paths are relative to the project."""

    lock: dict[str, Any] = field(default_factory=dict)
    """The entries of dvc.lock of the stages that made them."""
    pulled: dict[str, str] = field(default_factory=dict)
    """What goes through the remote, with its digest."""
    files: list[str] = field(default_factory=list)
    """What git keeps and a stage writes (metrics): the remote does not have it."""
    outs: list[str] = field(default_factory=list)
    """The stage's own outputs, as dvc.yaml has them."""
    unpushed_outs: list[str] = field(default_factory=list)
    """Those of them that git keeps."""


def read_inputs(name: str, root: Path) -> Inputs:
    """The inputs of the stage `name` that other stages made, as dvc.lock has them at this moment."""
    from dvc.stage import PipelineStage

    found = Inputs()
    entries = arrivals.lock_entries(root)
    with arrivals.opened(root) as repo:
        (stage,) = (one for one in repo.index.stages if isinstance(one, PipelineStage) and one.name == name)
        found.outs = [out.def_path for out in stage.outs]
        found.unpushed_outs = [out.def_path for out in stage.outs if not out.use_cache]
        deps = [Path(dep.fs_path) for dep in stage.deps]
        for out in repo.index.outs:
            path = Path(out.fs_path)
            if not any(path.is_relative_to(dep) or dep.is_relative_to(path) for dep in deps):
                continue
            if isinstance(out.stage, PipelineStage):
                found.lock[out.stage.name] = entries.get(out.stage.name)
                digests = arrivals.out_digests(entries.get(out.stage.name) or {})
            else:
                digests = {out.def_path: out.hash_info.value} if out.hash_info else {}
            if not out.use_cache:
                found.files.append(out.def_path)
            elif out.def_path in digests:
                found.pulled[out.def_path] = digests[out.def_path]
    found.lock = {producer: entry for producer, entry in found.lock.items() if entry is not None}
    return found
