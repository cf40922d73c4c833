"""The flows `promote` and `rollback`, which a person starts in Prefect's page, and the tables that show the history.

Prefect's page takes the descriptions of the parameters from the part `Args` of a flow's docstring.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.states import Failed

from densitywatch import environment
from densitywatch.errors import DensitywatchError, GateRejected, ParamsError
from densitywatch.params import Params, load_params
from densitywatch.registry.history import Entry
from densitywatch.text import visible
from pipelines import stoppable_runs
from pipelines.actor import actor
from pipelines.device_slots import device_slot, ensure_device_limit
from pipelines.prefect_text import leave_artifact, without_markup

REJECTED = "Rejected"
"""The name of the state that a run ends in when the gate refuses the version; its type is Failed."""
FIGURES = ("measure", "candidate", "champion", "difference", "at_most", "margin", "floor", "found", "champion_found")
"""The gate's figures that a table shows; MLflow has all of them."""


@flow(name="promote", flow_run_name="promote {model}")
def promote(model: str, reason: str = "", asked_by: str = "", version: int | None = None, afresh: bool = False) -> str:
    """Make a version of a model the champion, if the gate passes it.

    It is measured now, next to the present champion and on the same images. The run ends with a table of the model's
    history. Returns what the gate says.

    Args:
        model: The model that is to get another champion.
        reason: Why, in your own words. The history keeps them.
        asked_by: Your name, for the history. Empty: the user that the worker runs as.
        version: The number of a version. Empty: the challenger, which is the version registered last.
        afresh: Compare with no champion; the floor holds. For another dataset, or a champion that cannot be measured.
    """
    with _change(model) as (params, root):
        from densitywatch.registry import versions as registry

        ensure_device_limit(params.device.slots)
        with device_slot():
            asked = actor(by=asked_by, note=reason)
            decision = registry.promote(model, params, root, version, afresh=afresh, actor=asked)
        if decision.passed:
            get_run_logger().info("%s: %s", model, visible(decision.reason))
            return decision.reason
        get_run_logger().warning("%s: %s", model, visible(decision.reason))
    refused: Any = Failed(name=REJECTED, message=decision.reason, data=GateRejected(f"{model}: {decision.reason}"))
    return refused  # type: ignore[no-any-return]  # Prefect takes a returned state for the run's


@flow(name="rollback", flow_run_name="rollback {model}")
def rollback(model: str, reason: str = "", asked_by: str = "") -> int | None:
    """Make the previous champion of a model the champion again. Returns its version.

    The run ends with a table of the model's history.

    Args:
        model: The model that is to get its previous champion back.
        reason: Why, in your own words. The history keeps them.
        asked_by: Your name, for the history. Empty: the user that the worker runs as.
    """
    with _change(model) as (params, root):
        from densitywatch.registry import versions as registry

        version = registry.rollback(model, params, root, actor=actor(by=asked_by, note=reason))
        get_run_logger().info("%s: version %s is champion again", model, version)
    return version


@contextmanager
def _change(model: str) -> Iterator[tuple[Params, Path]]:
    """The params and the checkout, which is the working directory; at the end, the table of the model's history.

    Raises ParamsError where params.yaml has no such model.
    """
    root = Path.cwd()
    params = load_params(root / "params.yaml")
    if model not in names(params):
        raise ParamsError(f"no model '{model}' in params.yaml; there is: {', '.join(names(params))}")
    environment.limit_threads(os.environ, params.device.threads_of_a_stage)
    with stoppable_runs.stoppable(root):
        try:
            yield params, root
        finally:
            leave_artifact(lambda: history_table(model, params, root))


def names(params: Params) -> list[str]:
    """The models whose champion a person may change: the choices in Prefect's page."""
    return [*params.models, "detector"]


def history_table(model: str, params: Params, root: Path) -> Any:
    """Leave the artifact `history-<model>`: who made which version champion when, and why."""
    from densitywatch.registry.read_history import read_history

    champion, found = read_history(model, params, root)
    rows = [
        row(entry) | {"note": without_markup(entry.note)} | {key: entry.figures.get(key, "") for key in FIGURES}
        for entry in found
    ]
    told = f"History of {model}, the newest first. Champion: version {champion or 'none'}"
    return create_table_artifact([_rounded(one) for one in rows], key=artifact_key(model), description=told)


def gate_table(verdicts: list[dict[str, Any]], params: Params, root: Path) -> Any:
    """Leave the artifact `gate`: what the gate said about each candidate of a run, with its figures."""
    from densitywatch.registry.read_history import read_history

    rows = []
    for verdict in verdicts:
        noted: dict[str, Any] = {}
        if verdict["outcome"] != "unchanged":
            try:
                newest = read_history(verdict["model"], params, root)[1][:1]
            except DensitywatchError:  # the table is shown all the same
                newest = []
            noted = next(({**row(entry), **entry.figures} for entry in newest), {})
        keys = ("at", "from", "to", "by", *FIGURES)
        rows.append(
            _rounded({**verdict, "gate": without_markup(verdict["gate"])} | {key: noted.get(key, "") for key in keys})
        )
    return create_table_artifact(rows, key="gate", description="What the gate said about each candidate")


def row(entry: Entry) -> dict[str, Any]:
    """One entry as a row of a table; texts from outside are text, never markup."""
    return {
        "at": entry.at,
        "outcome": entry.outcome,
        "from": entry.before or "",
        "to": entry.after or "",
        "by": without_markup(entry.who),
        "reason": without_markup(entry.reason),
    }


def artifact_key(model: str) -> str:
    """Prefect takes small letters, digits and dashes."""
    return f"history-{model.replace('_', '-')}"


def _rounded(one: Mapping[str, Any]) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in one.items()}
