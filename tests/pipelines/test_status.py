"""`make status`: what it says of a project that does nothing, of one with a past, and of one that is broken."""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from densitywatch.batches.looks import note_look
from densitywatch.params import load_params
from densitywatch.registry import read_history
from densitywatch.registry.history import Entry
from pipelines import __main__ as command
from pipelines import dvc_commands, run_processes, service_processes, status
from tests.batches.test_over_time import row, write_table
from tests.detector.standin import fill


@pytest.fixture
def root(project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "params.yaml").write_bytes((project_root / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str]) -> str:
    assert command.main(["status"]) == 0
    return capsys.readouterr().out


def test_a_project_that_has_done_nothing_says_so_on_one_screen(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys)
    assert "Prefect, MLflow, Reports, Worker are down; `make up` starts what is down" in text
    for nothing in ("none goes on", "nothing waits", "none yet"):
        assert nothing in text
    assert "not known" not in text
    assert len(text.splitlines()) <= 24
    assert sorted(path.name for path in root.iterdir()) == ["params.yaml"], "it looks and makes nothing"


def a_past(root: Path) -> None:
    """Seven scored batches, the newest under an alarm; one batch waits for a day, and one failed."""
    results = root / "data" / "outliers"
    alarm = {"drift_alarm": True, "drift_moved": "brightness up", "drift_since": "batch-00006", "outliers": 49}
    write_table(results, [*(row(i, outliers=98) for i in range(7)), row(7, **alarm, folder="\u202eevil\x1b[2J")])
    (results / "index.html").write_text("page")
    fill(root / "data" / "inbox" / "late", 2)
    params = load_params(root / "params.yaml")
    now = time.time()
    note_look(params, root, started=now - 99, ended=now - 90, scored=1, left=[], failures=[])
    note_look(params, root, started=now - 9, ended=now, scored=0, left=[], failures=["bad (broken \x1b[31m zip)"])


def test_waiting_batches_the_last_look_and_the_last_batches_are_told(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a_past(root)
    (root / "mlflow.db").touch()
    entry = Entry("2026-11-29T18:43:35Z", "rejected", "2", "3", reason="bits/dim 9.9, 6.1 worse")
    monkeypatch.setattr(read_history, "registered_models", lambda params, root: ["vae"])
    monkeypatch.setattr(read_history, "read_history", lambda name, params, root: ("2", [entry]))
    text = said(capsys)
    assert re.search(r"1 batch waits \(\d complete\), the oldest for \d+ (s|min): late", text)
    assert re.search(r"last look \d+ (s|min) ago: 0 scored, 1 failed: bad \(broken \\x1b\[31m zip\)", text)
    assert re.search(r"the last look without a failure was \d+ min ago", text)
    assert "vae (champion 2): rejected, bits/dim 9.9, 6.1 worse" in text
    lines = text.splitlines()
    (newest,) = [line for line in lines if "evil" in line]
    assert newest.endswith(
        "\\u202eevil\\x1b[2J: 100 files, 49 flagged (50 %), 2 quarantined; drift: alarm: images are brighter,"
        " since batch-00006"
    )
    assert len([line for line in lines if " flagged (" in line]) == status.SHOWN
    assert len([line for line in lines if "98 flagged (100 %)" in line]) == status.SHOWN - 1
    assert f"batches over time  {root / 'data' / 'outliers' / 'index.html'}" in text
    assert len(lines) <= 30


def test_programs_get_the_same_as_json(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_past(root)
    assert command.main(["status", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {server["name"]: server["state"] for server in found["servers"]} == dict.fromkeys(
        ("Prefect", "MLflow", "Reports", "Worker"), "down"
    )
    assert found["inbox"]["waiting"] == 1
    assert found["inbox"]["last_look"]["failed"] == 1
    assert [batch["drift_alarm"] for batch in found["batches"]] == [True, None, None, None, None]
    assert found["runs"] == found["gate"] == []


def test_a_run_that_holds_the_lock_is_named_with_its_process(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "var").mkdir()
    with (root / "var" / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        print(os.getpid(), file=lock, flush=True)
        assert f"process {os.getpid()}, running, for" in said(capsys)
    assert "none goes on" in said(capsys)


def test_a_server_that_ended_and_one_that_does_not_answer_are_one_line_each(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "var").mkdir()
    entries = [
        {"name": name, "pid": pid, "created": 0.0, "log": f"{name}.log"}
        for name, pid in (("prefect", 1), ("mlflow", 2), ("worker", 1))
    ]
    (root / "var" / "services.json").write_text(json.dumps(entries))
    (root / "var" / "addresses.json").write_text(json.dumps({"Prefect": "http://127.0.0.1:9", "MLflow": "http://x"}))
    clone = root / "var" / "workers" / "gpu0"
    (clone / "var").mkdir(parents=True)
    (clone / "var" / "services.json").write_text(json.dumps([entries[2]]))

    class Alive:
        pid = 77

    monkeypatch.setattr(service_processes, "find", lambda entry: Alive() if entry["pid"] == 1 else None)
    lines = said(capsys).splitlines()
    assert "  Prefect      does not answer; see prefect.log" in lines
    assert "  MLflow       stopped; see mlflow.log" in lines
    for name in ("Worker", "Worker gpu0"):
        assert any(re.fullmatch(rf"  {name} +runs +process 77", line) for line in lines)
    assert "  Reports is down; `make up` starts what is down" in lines


def test_one_part_that_cannot_be_had_hides_no_other(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a_past(root)
    (root / "mlflow.db").write_text("no database")
    (root / "data" / "inbox" / "late").rename(root / "late")
    (root / "data" / "inbox").rmdir()
    (root / "data" / "inbox").write_text("a file")
    text = said(capsys)
    assert "not known: " in text
    assert "the inbox cannot be listed (Not a directory)" in text
    assert "MLflow's store" in text
    assert "batch-00006: 100 files" in text


def test_params_that_cannot_be_read_are_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "params.yaml").write_text("seed: x\n")
    assert command.main(["status"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pipelines: ")
    assert "params.yaml: " in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("seconds", "words"), [(-3, "0 s"), (89, "89 s"), (90, "2 min"), (7200, "2 h"), (86400 * 3, "3 days")]
)
def test_ages_are_told_in_the_unit_that_fits(seconds: float, words: str) -> None:
    assert status.age(seconds) == words


def answer_with(monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any]) -> None:
    monkeypatch.setattr(status, "_ask", lambda root, address, path, body: answers[path])


def test_the_runs_of_the_server_come_with_the_tasks_that_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [
        {"id": "1", "name": "retrain", "state": {"name": "Running"}, "start_time": "2026-11-29T18:00:00Z"},
        {"id": "2", "name": "detect-outliers", "state": {"name": "Pending"}, "start_time": None},
    ]
    tasks = [{"name": "train@vae", "flow_run_id": "1"}, {"name": "train@gan", "flow_run_id": "1"}]
    answer_with(monkeypatch, {"flow_runs/filter": runs, "task_runs/filter": tasks})
    up = [{"name": "Prefect", "address": "http://127.0.0.1:4200"}]
    retrain, inbox = status._runs(root, up)
    assert (retrain["tasks"], inbox["tasks"]) == (["train@gan", "train@vae"], [])
    assert retrain["page"] == "http://127.0.0.1:4200/runs/flow-run/1"
    now = retrain["started"] + 600
    assert status._run(retrain, now) == "retrain, running, for 10 min: train@gan, train@vae"
    assert status._run(inbox, now) == "detect-outliers, pending"


def test_a_stage_that_dvc_runs_or_restores_is_named_while_it_does(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = yaml.safe_load((toy / "dvc.yaml").read_text())
    graph["stages"]["slow"] = {"cmd": "while [ ! -e go ]; do sleep 0.1; done"}
    (toy / "dvc.yaml").write_text(yaml.safe_dump(graph))
    monkeypatch.setenv(run_processes.MARK, run_processes.new_mark(toy))
    running = threading.Thread(target=dvc_commands.run_stage, args=("slow", toy, lambda line: None))
    running.start()
    try:
        until = time.monotonic() + 60
        while not (seen := status._stages(toy)) and time.monotonic() < until:
            time.sleep(0.1)
    finally:
        (toy / "go").touch()
        running.join(60)
    assert seen == ["slow"]
    assert dvc_commands.stage_of([sys.executable, "-P", dvc_commands.RESTORE, "slow"]) == "slow"
    assert dvc_commands.stage_of([sys.executable, "-m", "dvc", "push"]) is None
    assert status._stages(toy) == []
