"""A run of one commit: in a clone, by the commit's own code, with the checkout's cache, remote and registry.

The commits here have a `pipelines` of their own that notes what it was given; test_services.py runs the real one.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.artifacts import Artifact

from densitywatch.errors import DataError, DensitywatchError
from pipelines import ask_retrain, commit_pages, commit_run, dvc_commands, retrain_result
from tests.pipelines.test_retrain_result import result

PROJECT = Path(__file__).parents[2]
MAIN = """
import json, os, subprocess, sys
from pathlib import Path
from code_of import NAME
root = Path.cwd()
if NAME == "broken":
    trace = root / "var" / "log" / "traceback.txt"
    trace.parent.mkdir(parents=True); trace.write_text("of the stage")
    print(f"pipelines: stage train: the loss became NaN; the traceback is in {trace}"); sys.exit(1)
print("12:00:00.123 | INFO    | Flow run 'retrain' - View at http://x/runs/flow-run/0f0f0f0f-0000-0000-0000-0123456789ab")
print("12:00:00.124 | INFO    | Task run 'train' - a line of Prefect's")
print(f"the code of {NAME}")
subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], check=True)
subprocess.run([sys.executable, "-m", "dvc", "push", "-q"], check=True)
(root / "metrics" / "a.json").write_text(json.dumps({"loss": 1.0}))
(root / "metrics" / "b.json").unlink()
(root / "unasked.txt").touch()
(root / "reports" / "plots").mkdir(parents=True)
(root / "reports" / "plots" / "a.csv").write_text("step,train,validation\\n1,3.0,\\n2,2.0,4.0\\n3,1.0,2.0\\n")
(root / "reports" / "plots" / "empty.csv").write_text("step,train,validation\\n")
Path("var").mkdir(exist_ok=True)
step = {"name": "train", "outcome": "ran", "started": 0.5, "ended": 2.0}
Path("var/run.json").write_text(json.dumps({"steps": [step]}))
Path("var/verdicts.json").write_text(json.dumps([{"model": "a", "outcome": "promoted", "gate": "better"}]))
kept = ("PYTHONPATH", "MLFLOW_TRACKING_URI", "PREFECT__FLOW_RUN_ID")
given = {name: os.environ.get(name) for name in kept}
Path(os.environ["NOTES"]).write_text(json.dumps({"cwd": str(root), "data": Path("data.txt").read_text(), **given}))
"""
GRAPH = """
metrics: [metrics/a.json]
stages:
  data:
    cmd: echo slow > data.txt
    outs: [data.txt]
  train:
    cmd: cp data.txt weights
    params: [seed]
    outs: [weights]
"""


def git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@localhost", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit(root: Path, name: str) -> str:
    (root / "pipelines" / "code_of.py").write_text(f"NAME = {name!r}\n")
    (root / "src" / "code_of.py").write_text(f"NAME = {name!r}\n")
    git(root, "add", "-A")
    git(root, "commit", "-qm", name)
    return git(root, "rev-parse", "HEAD")


@pytest.fixture(scope="module")
def _first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("first") / "checkout"
    for folder in ("pipelines", "src", "metrics"):
        (root / folder).mkdir(parents=True)
    shutil.copyfile(PROJECT / "params.yaml", root / "params.yaml")
    (root / "dvc.yaml").write_text(GRAPH)
    (root / "pipelines" / "__init__.py").touch()
    (root / "pipelines" / "__main__.py").write_text(MAIN)
    (root / "pipelines" / "commit_run.py").touch()
    (root / "requirements.lock").write_text("torch==1\n")
    (root / ".gitignore").write_text("/var\n__pycache__\n/mlartifacts\n/reports\n/data.txt\n/weights\n")
    for name in ("a", "b"):
        (root / "metrics" / f"{name}.json").write_text(json.dumps({"loss": 2.0}))
    git(root, "init", "-q", "-b", "main")
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=root, check=True)
    (root / ".dvc" / "config").write_text("[core]\n    remote = r\n['remote \"r\"']\n    url = ../var/remote\n")
    dvc_commands.run_dvc(root, "repro", "data")
    commit(root, "first")
    return root


@pytest.fixture
def checkout(_first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person's checkout: at its second commit, with an edit that is not committed."""
    root = tmp_path / "Ärger & 'Blanks'" / "checkout"
    shutil.copytree(_first, root, symlinks=True)
    commit(root, "second")
    (root / "params.yaml").write_text((root / "params.yaml").read_text().replace("seed: 1", "seed: 7"))
    monkeypatch.setenv("NOTES", str(tmp_path / "notes.json"))
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "of the flow that asked")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return root


def state_of(root: Path) -> tuple[str, ...]:
    files = {
        str(path): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not {".git", ".dvc", "var"} & set(path.relative_to(root).parts)
    }
    return (git(root, "status", "--porcelain"), git(root, "rev-parse", "HEAD"), git(root, "branch"), repr(files))


@pytest.mark.server  # a stand-in's child process, named as the real one
@pytest.mark.slow
def test_the_commits_code_runs_in_a_clone_and_its_results_come_back(checkout: Path, tmp_path: Path) -> None:
    before, said = state_of(checkout), list[str]()
    first = git(checkout, "rev-parse", "HEAD~1")
    done = commit_run.run(checkout, "HEAD~1", said.append)
    given = json.loads((tmp_path / "notes.json").read_text())
    clone = Path(given["cwd"])
    assert clone == checkout / "var" / "commits" / "checkout"
    assert said == [
        f"HEAD~1 is commit {first}; it runs in {clone}",
        "its stages are those of the flow run 0f0f0f0f-0000-0000-0000-0123456789ab",
        "the code of first",
    ]
    assert "a line of Prefect's" in (checkout / "var" / "log" / "commit.log").read_text()
    assert given["PYTHONPATH"].split(os.pathsep)[:2] == [str(clone / "src"), str(clone)]
    assert given["MLFLOW_TRACKING_URI"] == f"sqlite:///{checkout / 'mlflow.db'}"
    assert given["PREFECT__FLOW_RUN_ID"] is None
    assert [(step.name, step.outcome, round(step.seconds, 1)) for step in done.steps] == [("train", "ran", 1.5)]

    result = retrain_result.check(json.loads(json.dumps(done.result)))
    assert result["commit"] == first
    assert result["verdicts"] == [{"model": "a", "outcome": "promoted", "gate": "better"}]
    assert sorted(result["files"]) == ["dvc.lock", "metrics/a.json"]
    assert json.loads(result["files"]["metrics/a.json"]) == {"loss": 1.0}
    assert "train:" in result["files"]["dvc.lock"]
    assert result["removed"] == ["metrics/b.json"]
    assert result["other_changes"] == ["unasked.txt"]
    assert "| metrics/a.json | loss" in " ".join(result["metrics"].split())
    assert set(result["curves"]) == {"a"}
    assert result["curves"]["a"]["steps"] == [1, 3]
    assert result["curves"]["a"]["train"][:: retrain_result.POINTS - 1] == [3.0, 1.0]
    assert result["curves"]["a"]["validation"][:: retrain_result.POINTS - 1] == [4.0, 2.0]

    assert state_of(checkout) == before
    assert not (checkout / "var" / "commits").exists()


@pytest.mark.server  # a stand-in's child process, named as the real one
@pytest.mark.slow
def test_data_and_models_come_from_the_checkouts_cache_and_go_to_its_remote(checkout: Path, tmp_path: Path) -> None:
    (checkout / "data.txt").unlink()
    commit_run.run(checkout, "main", lambda line: None)
    assert json.loads((tmp_path / "notes.json").read_text())["data"] == "slow\n"
    stored = [path for path in (checkout / "var" / "remote").rglob("*") if path.is_file()]
    assert [path for path in stored if path.read_text() == "slow\n"], "pushed to the checkout's remote"
    cached = [path for path in (checkout / ".dvc" / "cache" / "files").rglob("*") if path.is_file()]
    assert {path.name for path in stored} <= {path.name for path in cached}, "kept in the checkout's cache"


@pytest.mark.slow
def test_passwords_of_the_remotes_are_for_the_owner_alone(checkout: Path) -> None:
    (checkout / ".dvc" / "config.local").write_text(
        "['remote \"s\"']\n    url = s3://b/p\n    secret_access_key = pw\n"
    )
    _, clone = commit_run._clone(checkout, "main", checkout / commit_run.FOLDER)
    commit_run._share(checkout, clone, "main", "0" * 40)
    config = clone / ".dvc" / "config.local"
    assert "secret_access_key = pw" in config.read_text()
    assert config.stat().st_mode & 0o777 == 0o600
    assert dvc_commands.default_remote(clone) == str(checkout / "var" / "remote")
    assert (clone / "mlartifacts").resolve() == checkout / "mlartifacts"
    assert commit_run.is_clone(clone)
    assert not commit_run.is_clone(checkout)


@pytest.mark.server  # a stand-in's child process, named as the real one
@pytest.mark.slow
def test_a_commit_that_the_checkout_lacks_comes_from_its_origin(checkout: Path, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    subprocess.run(["git", "clone", "-q", str(checkout), str(origin)], check=True)
    new = commit(origin, "third")
    said = list[str]()
    with pytest.raises(DensitywatchError, match=f"git does not know '{new}' .* no remote `origin` to ask"):
        commit_run.run(checkout, new, said.append)
    # the address holds for who has the repository's own settings: a rule there, as a password might be
    git(checkout, "remote", "add", "origin", "of-the-team:repository")
    git(checkout, "config", f"url.{origin}.insteadOf", "of-the-team:repository")
    before = git(checkout, "for-each-ref")
    done = commit_run.run(checkout, new, said.append)
    assert done.result["commit"] == new
    assert "the code of third" in said
    assert git(checkout, "for-each-ref") == before, "the person's branches stay"
    with pytest.raises(
        DensitywatchError, match=r"git does not know 'nowhere' .* nor does its remote .* push the commit"
    ):
        commit_run.run(checkout, "nowhere", said.append)
    assert not (checkout / "var" / "commits").exists()


@pytest.mark.parametrize("ref", ["-b", "--upload-pack=touch x", "a..b", "$(touch x)"])
def test_what_is_no_reference_starts_nothing(checkout: Path, ref: str) -> None:
    with pytest.raises(DensitywatchError, match="is no git reference"):
        commit_run.run(checkout, ref, lambda line: None)
    assert not (checkout / "var" / "commits").exists()


@pytest.mark.slow
def test_a_commit_for_another_environment_or_from_before_this_is_refused_in_one_sentence(checkout: Path) -> None:
    (checkout / "requirements.lock").write_text("torch==2\n")
    with pytest.raises(
        DensitywatchError, match=r"has another requirements\.lock than .*; check out a commit with that"
    ):
        commit_run.run(checkout, "main", lambda line: None)
    git(checkout, "checkout", "-q", "requirements.lock")
    git(checkout, "rm", "-q", "pipelines/commit_run.py")
    old = commit(checkout, "old")
    with pytest.raises(DensitywatchError, match=f"commit {old[:12]} is older than runs of a commit"):
        commit_run.run(checkout, old, lambda line: None)


@pytest.mark.server  # a stand-in's child process, named as the real one
@pytest.mark.slow
def test_a_run_that_fails_is_its_own_sentence_and_leaves_no_clone(checkout: Path) -> None:
    git(checkout, "stash", "-q")
    broken = commit(checkout, "broken")
    left = checkout / "var" / "commits" / "checkout"
    left.mkdir(parents=True)
    (left / "of a killed run").touch()
    with pytest.raises(
        dvc_commands.StageFailed, match=r"^stage train: the loss became NaN; the traceback is in "
    ) as it:
        commit_run.run(checkout, broken, lambda line: None)
    assert str(it.value).endswith(f" is in {checkout}/var/log/traceback.txt")
    assert (checkout / "var" / "log" / "traceback.txt").read_text() == "of the stage"
    assert not (checkout / "var" / "commits").exists()


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    pages: list[Any] = []
    monkeypatch.setattr(commit_pages, "get_run_logger", lambda: logging.getLogger("run"))
    monkeypatch.setattr(commit_pages, "create_markdown_artifact", lambda page, **about: pages.append((page, about)))
    caplog.set_level(logging.INFO, "run")
    caplog.pages = pages  # type: ignore[attr-defined]
    return caplog


def test_what_is_not_committed_is_recorded_in_the_run(checkout: Path, log: Any) -> None:
    (checkout / "src" / "<b>new.py").touch()
    commit_pages.note_uncommitted(checkout)
    assert log.messages == ["not committed: params.yaml, src/<b>new.py; this run belongs to no commit"]
    ((page, about),) = log.pages
    assert about["key"] == "git-uncommitted"
    assert "    src/<b>new.py\n" in page, "a block of text, not HTML"


def test_or_it_stops_the_run_when_params_say_so(checkout: Path, log: Any) -> None:
    params = checkout / "params.yaml"
    params.write_text(params.read_text().replace("uncommitted: record", "uncommitted: refuse"))
    with pytest.raises(DensitywatchError, match=r"^not committed: params\.yaml; commit it, or set git\.uncommitted"):
        commit_pages.note_uncommitted(checkout)
    git(checkout, "commit", "-qam", "kept")
    (checkout / "metrics" / "a.json").write_text("{}")
    commit_pages.note_uncommitted(checkout)
    assert log.messages == [], "results of an earlier run are no reason"
    shutil.rmtree(checkout / ".git")
    with pytest.raises(DensitywatchError, match=r"is no git repository, and git\.uncommitted is `refuse`"):
        commit_pages.note_uncommitted(checkout)


def test_after_a_run_the_files_to_commit_are_named_with_the_command(checkout: Path, log: Any) -> None:
    commit_pages.tell_what_to_commit(checkout)
    assert log.messages == []
    (checkout / "metrics" / "a.json").write_text("{}")
    (checkout / "dvc.lock").write_text("stages: {}\n")
    commit_pages.tell_what_to_commit(checkout)
    keep = "git add dvc.lock metrics && git commit -m 'Retrain'"
    assert log.messages == [f"changed, not committed: dvc.lock, metrics/a.json; keep them: {keep}"]
    assert log.pages[0][1]["key"] == "git-results"
    (checkout / "var").mkdir(exist_ok=True)
    (checkout / commit_run.NOTE).write_text("{}")
    commit_pages.tell_what_to_commit(checkout)
    assert len(log.messages) == 1, "a clone's files go back with its result"


@pytest.mark.parametrize(("outcome", "stands"), [("promoted", False), ("rejected", True)])
def test_the_result_is_left_for_people_and_for_ci_and_a_new_detector_ends_the_checkouts_alarm(
    checkout: Path, log: Any, monkeypatch: pytest.MonkeyPatch, outcome: str, stands: bool
) -> None:
    from densitywatch.params import load_params
    from pipelines import drift_note

    left: list[tuple[str | None, Any]] = []

    class Left(Artifact):
        def create(self) -> None:
            left.append((self.key, self.format(_sync=True)))

    monkeypatch.setattr(commit_pages, "Artifact", Left)
    found = result(verdicts=[{"model": "detector", "version": 2, "outcome": outcome, "gate": "0.9 is 0.8 or more"}])
    monkeypatch.setattr(commit_run, "run", lambda *_: commit_run.CommitRun([], found))
    params = load_params(checkout / "params.yaml")
    alarm = drift_note.Alarm(
        stream="s", batch="b", since="a", moved="brighter", evidence=1e3, batches=["a", "b"], seen=None
    )
    with drift_note.held(checkout / params.inbox.results) as known:
        known.alarm = alarm
    assert drift_note.standing_alarm(params, checkout) == alarm
    assert commit_pages.retrain_commit(checkout, "main") == []
    assert (drift_note.standing_alarm(params, checkout) is not None) == stands
    assert log.messages == [f"detector  {outcome:<9}  0.9 is 0.8 or more"]
    assert [about["key"] for _, about in log.pages] == ["retrain-commit"]
    ((key, sent),) = left
    assert key == retrain_result.KEY
    monkeypatch.setattr(ask_retrain.Server, "call", lambda *_: [{"data": sent}])
    server = ask_retrain.Server("http://127.0.0.1:4200/api", "")
    assert ask_retrain.result_of(server, "a run") == found, "as the CI side reads it"


def test_the_clone_of_a_commit_scores_the_demo_batch_alone(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from densitywatch.params import load_params
    from pipelines import retrain

    scored: list[list[str]] = []
    monkeypatch.setattr(retrain, "detect_outliers", lambda root, batches: scored.append(sorted(batches)) or [])
    for name in ("demo", "monday"):
        (checkout / "data" / "inbox" / name).mkdir(parents=True)
        (checkout / "data" / "inbox" / name / "_SUCCESS").touch()
    params = load_params(checkout / "params.yaml")
    retrain._detect(params, checkout, demo=True)
    (checkout / "var").mkdir(exist_ok=True)
    (checkout / commit_run.NOTE).write_text("{}")
    retrain._detect(params, checkout, demo=True)
    assert scored == [["demo", "monday"], ["demo"]]


def test_pull_says_what_to_do_where_the_remote_holds_nothing(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.__main__ import main

    monkeypatch.chdir(checkout)
    assert main(["pull"]) == 1
    said = capsys.readouterr().err
    assert (
        f"the DVC remote {checkout}/var/remote holds nothing: a folder of this checkout, which only runs here" in said
    )
    assert ".venv/bin/dvc remote add --local --default team s3://bucket/densitywatch" in said
    (checkout / ".dvc" / "config").write_text("")
    assert main(["pull"]) == 1
    assert "no DVC remote is set; name one" in capsys.readouterr().err
    assert main(["pull", "x"]) == 2


@pytest.mark.slow
def test_the_documented_line_names_a_remote_that_pull_then_uses(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.__main__ import main
    from pipelines.pull import TEAM

    monkeypatch.chdir(checkout)
    words = TEAM.split()[1:]
    words[-1] = str(tmp_path / "team")
    (checkout / "dvc.yaml").write_text(GRAPH.partition("  train:")[0])  # of which every stage has run
    dvc_commands.run_dvc(checkout, *words)
    dvc_commands.run_dvc(checkout, "push")
    shutil.rmtree(checkout / ".dvc" / "cache")
    (checkout / "data.txt").unlink()
    assert main(["pull"]) == 0
    assert (checkout / "data.txt").read_text() == "slow\n"


def test_a_batch_that_cannot_be_scored_is_named_and_stops_no_retraining(
    checkout: Path, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from densitywatch.params import load_params
    from pipelines import retrain

    def broken(*_: Any, **__: Any) -> None:
        raise DataError("not scored: monday (it changed while it was read)")

    monkeypatch.setattr(retrain, "get_run_logger", lambda: logging.getLogger("run"))
    params = load_params(checkout / "params.yaml")
    for name in ("detect_outliers", "find_batches"):  # a batch, or the inbox as a whole
        with monkeypatch.context() as patched:
            patched.setattr(retrain, name, broken)
            assert retrain._detect(params, checkout, demo=True).outcome == "a batch failed"
    assert log.messages == ["not scored: monday (it changed while it was read)"] * 2
