"""Addresses that pages of one program give of another: Prefect's run, MLflow's version, a batch's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

from densitywatch.errors import DataError
from densitywatch.files import read_json
from densitywatch.params import Params
from densitywatch.tracking.store import FLOW_RUN, REPORT, plain, tracking_uri
from pipelines import reports, server, service_processes
from pipelines.prefect_text import without_markup


def flow_run_page() -> str | None:
    """The page of the flow run that this code is in; None outside of one, and on a server that ends with the run."""
    if server.is_temporary() or not flow_run.id:
        return None
    return url_for("flow-run", obj_id=flow_run.id)


def of_batch(folder: Path, root: Path) -> dict[str, str]:
    """What the MLflow run of a scored batch says of other pages: tags by their names."""
    links = {FLOW_RUN: flow_run_page(), REPORT: reports.page_of(folder, root)}
    return {name: address for name, address in links.items() if address is not None}


def mlflow_page(params: Params, root: Path) -> str | None:
    """The address of MLflow's pages: of the server of `make up`, or of params.yaml's own; None without one."""
    entry = next((entry for entry in service_processes.noted(root) if entry["name"] == "mlflow"), None)
    if entry is not None and service_processes.find(entry) is not None:
        try:
            known = read_json(root / "var" / "addresses.json")
        except (FileNotFoundError, DataError):
            known = None
        found = known.get("MLflow") if isinstance(known, dict) else None
        if isinstance(found, str):
            return found
    store = tracking_uri(params, root)
    return plain(store).rstrip("/") if store.startswith(("http://", "https://")) else None


def models_table(verdicts: Sequence[Mapping[str, Any]], params: Params, root: Path) -> str:
    """The models of a run as Markdown: version, what became of it, and what the gate said, linked to MLflow's pages."""
    from densitywatch.registry.champions import REGISTERED

    page = mlflow_page(params, root)
    lines = ["| model | version | outcome | the gate |", "|---|---|---|---|"]
    for verdict in verdicts:
        name, version = without_markup(verdict["model"]), without_markup(verdict["version"])
        if page is not None:
            model = f"{page}/#/models/{REGISTERED}{name}"
            name, version = f"[{name}]({model})", f"[{version}]({model}/versions/{version})"
        lines.append(
            f"| {name} | {version} | {without_markup(verdict['outcome'])} | {without_markup(verdict['gate'])} |"
        )
    pages = {"batches over time": "/", "comparison of the models": f"/{reports.TRAINING}/"}
    at = reports.address(root)
    more = [f"[{name}]({at}{path})" for name, path in pages.items()] if at is not None else []
    return "\n".join([*lines, *(["", ", ".join(more)] if more else [])]) + "\n"
