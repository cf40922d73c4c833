"""Addresses that one page gives of another, and the bar of a training that runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client

from densitywatch.params import load_params
from densitywatch.tracking.store import FLOW_RUN, REPORT
from pipelines import links, service_processes, stage_progress

VERDICT = {"model": "vae", "version": 3, "outcome": "promoted", "gate": "version 3 passed: bits/dim 3.1, 0.2 better"}


@pytest.fixture
def root(project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project without servers, and no store that the user has set."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "params.yaml").write_bytes((project_root / "params.yaml").read_bytes())
    (tmp_path / "var").mkdir()
    return tmp_path


def put_up(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = {"MLflow": "http://127.0.0.1:5000", "Reports": "http://127.0.0.1:4400"}
    (root / "var" / "addresses.json").write_text(json.dumps(addresses))
    entries = [{"name": name, "pid": 1, "created": 0.0, "log": ""} for name in ("mlflow", "reports")]
    (root / "var" / "services.json").write_text(json.dumps(entries))
    monkeypatch.setattr(service_processes, "find", lambda entry: entry["pid"] == 1 or None)


def test_the_models_are_linked_to_mlflows_pages_where_there_are_some(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = load_params(root / "params.yaml")
    alone = links.models_table([VERDICT], params, root)
    assert "| vae | 3 | promoted | version 3 passed: bits/dim 3.1, 0.2 better |" in alone
    assert "](" not in alone
    put_up(root, monkeypatch)
    linked = links.models_table([VERDICT], params, root)
    model = "http://127.0.0.1:5000/#/models/densitywatch-vae"
    assert f"| [vae]({model}) | [3]({model}/versions/3) | promoted |" in linked
    assert "[batches over time](http://127.0.0.1:4400/)" in linked


def test_a_remote_mlflow_is_linked_without_its_password(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@ml.example/")
    params = load_params(root / "params.yaml")
    assert links.mlflow_page(params, root) == "https://ml.example"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@db.example/x")
    assert links.mlflow_page(params, root) is None


def test_what_the_gate_says_is_text_in_the_table(root: Path) -> None:
    evil = VERDICT | {"gate": "a | b <script>x</script> [y](javascript:z) `c`\n| new | row |"}
    table = links.models_table([evil], load_params(root / "params.yaml"), root)
    (line,) = [line for line in table.splitlines() if line.startswith("| vae")]
    assert line.count("|") == 5
    assert not set("<>[]`") & set(line)


def test_outside_of_a_flow_a_batch_links_to_its_report_alone(root: Path) -> None:
    folder = root / "data" / "outliers" / "monday"
    assert links.of_batch(folder, root) == {REPORT: (folder / "report.html").as_uri()}


@pytest.mark.usefixtures("prefect_server")
def test_in_a_flow_it_links_to_the_flow_runs_page_too_and_a_training_moves_one_bar(root: Path) -> None:
    lines = ["compiling", "train vae: 100 of 400", "train vae: 200 of 400", "train vae: 400 done in 3 s"]
    seen: list[str] = []

    @flow
    def trains() -> tuple[str, dict[str, str]]:
        from prefect.runtime import flow_run

        say = stage_progress.with_bar("train@vae", seen.append, seconds=0.0)
        for line in lines:
            say(line)
        patient = stage_progress.with_bar("evaluate@vae", seen.append, seconds=60.0)
        for line in ("train judge: 1 of 4", "train judge: 2 of 4"):
            patient(line)
        return str(flow_run.id), links.of_batch(root / "data" / "outliers" / "monday", root)

    run, known = trains()
    assert known[FLOW_RUN].endswith(f"/runs/flow-run/{run}")
    assert seen[:4] == lines
    bars = {found["key"]: found for found in artifacts() if found["flow_run_id"] == run}
    assert (bars["train-vae"]["data"], bars["train-vae"]["description"]) == (50.0, "vae: 200 of 400 steps")
    assert bars["evaluate-vae"]["data"] == 25.0


def artifacts() -> list[dict[str, Any]]:
    with get_client(sync_client=True) as client:
        return list(client.request("POST", "/artifacts/filter", json={}).json())
