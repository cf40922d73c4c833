"""What `make run` says when there is nothing to do, and when there is; no Prefect is started here."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from densitywatch.data.look import look
from densitywatch.params import load_params
from pipelines import __main__ as entry
from pipelines import dvc_commands, prefect_home, run_lock, up_to_date

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def done(tmp_path: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose last run got to its end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "params.yaml").write_bytes((project_root / "params.yaml").read_bytes())
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\n")
    (tmp_path / "mlflow.db").touch()
    look(load_params(tmp_path / "params.yaml"), tmp_path)
    up_to_date.note_up_to_date(tmp_path)
    monkeypatch.setattr(dvc_commands, "stale_stages", lambda root: set())
    return tmp_path


def test_with_nothing_changed_the_second_run_ends_before_prefect_is_imported(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = set(sys.modules)
    assert entry.main([]) == 0
    assert capsys.readouterr().out.startswith("everything is up to date")
    assert not {name for name in set(sys.modules) - known if name.partition(".")[0] in ("prefect", "torch", "mlflow")}


@pytest.mark.parametrize("lost", ["var/fresh.json", "mlflow.db"])
def test_without_its_receipt_or_its_registry_a_run_is_not_done(done: Path, lost: str) -> None:
    assert up_to_date.is_up_to_date(done)
    (done / lost).unlink()
    assert not up_to_date.is_up_to_date(done)


@pytest.mark.parametrize("file", ["params.yaml", "dvc.lock"])
def test_an_edit_of_what_the_last_run_was_about_is_seen(done: Path, file: str) -> None:
    with (done / file).open("a") as text:
        text.write("# an edit\n")
    assert not up_to_date.is_up_to_date(done)


def test_a_stale_stage_or_a_complete_batch_in_the_inbox_is_work(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dvc_commands, "stale_stages", lambda root: {"train@vae"})
    assert not up_to_date.is_up_to_date(done)
    monkeypatch.setattr(dvc_commands, "stale_stages", lambda root: set())
    batch = done / "data" / "inbox" / "monday"
    batch.mkdir(parents=True)
    (batch / "a.png").write_bytes(b"not looked at here")
    assert up_to_date.is_up_to_date(done), "the batch may still be written"
    (batch / "_SUCCESS").touch()
    assert not up_to_date.is_up_to_date(done)


def test_a_receipt_that_is_no_json_counts_as_none(done: Path) -> None:
    (done / "var" / "fresh.json").write_text("{")
    assert not up_to_date.is_up_to_date(done)


def test_a_second_run_of_the_same_checkout_is_refused_in_one_line(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with holding_the_lock(done) as other:
        assert entry.main(["retrain"]) == 1
    assert capsys.readouterr().err == (
        f"pipelines: another run (process {other.pid}) is going on in {done}; wait for it to end, or stop it\n"
    )
    assert entry.main(["retrain"]) == 0


def test_who_may_wait_for_another_run_says_so_once_and_has_its_turn(done: Path) -> None:
    said: list[str] = []
    with holding_the_lock(done) as other:
        threading.Timer(1.5, other.kill).start()
        with run_lock.one_run_at_a_time(done, say=said.append):
            assert other.wait() == -signal.SIGKILL
    assert said == [f"another run (process {other.pid}) is going on in {done}; waiting for it to end"]


def test_a_run_inside_a_run_is_the_same_run_and_the_lock_goes_with_the_outer_one(done: Path) -> None:
    with run_lock.one_run_at_a_time(done):
        with run_lock.one_run_at_a_time(done):
            pass
        assert holds(done)
    assert not holds(done)


def test_who_only_looks_who_holds_the_lock_has_no_run_refused(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with run_lock.one_run_at_a_time(done):
        pass
    with (done / "var" / "run.lock").open() as looked_at:
        fcntl.flock(looked_at, fcntl.LOCK_SH)
        monkeypatch.setattr(run_lock.time, "sleep", lambda seconds: looked_at.close())
        with run_lock.one_run_at_a_time(done):
            assert holds(done)


HOLD = """import sys; from pathlib import Path; from pipelines import run_lock
with run_lock.one_run_at_a_time(Path(sys.argv[1])):
"""


@contextmanager
def holding_the_lock(root: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the run lock."""
    program = f"{HOLD}    print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(root)]
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def holds(root: Path) -> bool:
    """Whether another process finds the lock taken."""
    return (
        subprocess.run(
            [sys.executable, "-c", f"{HOLD}    pass", str(root)], cwd=PROJECT, capture_output=True
        ).returncode
        != 0
    )


def test_params_that_cannot_be_used_exit_with_2_before_anything_starts(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (done / "params.yaml").write_text("seed: many\n")
    assert entry.main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith("pipelines: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("arguments", [["nonsense"], ["retrain", "again"]])
def test_wrong_usage_is_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: python -m pipelines [retrain [here | pool] | detect-outliers | status | ask")


def test_with_no_new_batch_the_inbox_job_says_so(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["detect-outliers"]) == 0
    assert capsys.readouterr().out == "no new batch\n"


def test_flows_talk_to_the_server_of_make_up_only_while_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settle(answering: bool) -> str | None:
        environment: dict[str, str] = {}
        monkeypatch.setattr(prefect_home.os, "environ", environment)
        monkeypatch.setattr(prefect_home, "is_own", lambda address, root: answering)
        found: Any = prefect_home.settle(tmp_path)
        assert environment["PREFECT_HOME"] == str(tmp_path / "var" / "prefect")
        return found

    assert settle(True) is None, "nobody has started one"
    (tmp_path / "var" / "prefect.address").write_text("http://127.0.0.1:4200/api\n")
    assert settle(True) == "http://127.0.0.1:4200/api"
    assert settle(False) is None
