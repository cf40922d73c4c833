"""What the placement `pool` rests on, without a server: commits, inputs, and results that come through the remote."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import psutil
import pytest
from prefect.client.schemas.objects import State, StateType, WorkerStatus
from prefect.states import Cancelled, Completed, Crashed, Failed, Pending, Running, Scheduled

from densitywatch import stopping
from densitywatch.errors import DensitywatchError
from pipelines import arrivals, commits, dvc_commands, dvc_graph, train_model, training_pool, worker
from pipelines.dvc_commands import StageFailed
from pipelines.stage_inputs import read_inputs
from tests.marks import marks

PARAMS = "models:\n  a: {steps: 1}\n"
GRAPH = """
stages:
  fetch:
    cmd: mkdir -p data && echo raw > data/raw
    outs: [data/raw]
  see:
    cmd: echo seen > seen.txt
    deps: [data/raw]
    outs: [{seen.txt: {cache: false}}]
  train:
    foreach: ${models}
    do:
      cmd: mkdir -p models && echo ${key} ${item.steps} > models/${key}
      params: ["models.${key}"]
      deps: [data/raw]
      outs: ["models/${key}"]
  folder:
    cmd: mkdir -p models/folder/in metrics && echo one > models/folder/in/one && echo two > models/folder/two &&
      echo 1 > metrics/folder.json
    deps: [data/raw, seen.txt]
    outs: [models/folder]
    metrics: [{metrics/folder.json: {cache: false}}]
"""
IGNORED = "/data\n/models\n/metrics\n/seen.txt\n"


def git(root: Path, *words: str) -> str:
    identity = ("-c", "user.name=tests", "-c", "user.email=tests@localhost")
    done = subprocess.run(["git", *identity, *words], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def make_project(folder: Path) -> tuple[Path, Path]:
    """Two clones of one commit with one DVC remote; none of the stages has run."""
    caller, clone = folder / "caller", folder / "clone"
    files = {
        "params.yaml": PARAMS,
        "dvc.yaml": GRAPH,
        ".gitignore": IGNORED,
        ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
        ".dvc/config": f"[core]\n    remote = shared\n['remote \"shared\"']\n    url = {folder / 'remote'}\n",
    }
    for name, text in files.items():
        (caller / name).parent.mkdir(parents=True, exist_ok=True)
        (caller / name).write_text(text)
    git(caller, "init", "-q")
    git(caller, "add", "-A")
    git(caller, "commit", "-qm", "a small project")
    git(caller, "clone", "-q", str(caller), str(clone))
    return caller, clone


@pytest.fixture
def project(tmp_path: Path) -> tuple[Path, Path]:
    return make_project(tmp_path)


@pytest.fixture(scope="module")
@marks("slow")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same. The first has run the stages that do not train, the second nothing."""
    caller, clone = make_project(tmp_path_factory.mktemp("two"))
    dvc_commands.run_dvc(caller, "repro", "fetch", "see")
    dvc_commands.run_dvc(caller, "push", "data/raw")
    return caller, clone


def compute(name: str, caller: Path, clone: Path) -> None:
    """What a worker does with a stage, without Prefect."""
    inputs = read_inputs(name, caller)
    train_model.lay_out(inputs.lock, {}, clone)
    for path in inputs.files:
        (clone / path).write_bytes((caller / path).read_bytes())
    dvc_commands.run_dvc(clone, "pull", *inputs.pulled)
    arrivals.check_digests(inputs.pulled, clone)
    assert dvc_commands.run_stage(name, clone, print) == "ran"
    dvc_commands.run_dvc(clone, "push", "--run-cache", name)


def test_a_stage_is_restored_with_the_bytes_that_another_clone_made_and_never_run(two: tuple[Path, Path]) -> None:
    caller, clone = two
    with pytest.raises(StageFailed, match="the DVC remote has no result for the present inputs of this stage"):
        dvc_commands.run_stage("train@a", caller, print, restore=True)
    assert not (caller / "models" / "a").exists()
    compute("train@a", caller, clone)
    assert dvc_commands.run_stage("train@a", caller, print, restore=True) == "restored"
    assert (caller / "models" / "a").read_text() == "a 1\n"
    made, restored = arrivals.lock_entries(clone)["train@a"], arrivals.lock_entries(caller)["train@a"]
    assert restored == made
    assert arrivals.digest(caller / "models" / "a") == made["outs"][0]["md5"]
    assert dvc_commands.run_stage("train@a", caller, print, restore=True) == "skipped"


def test_a_folder_and_a_metric_arrive_and_what_is_damaged_in_the_remote_is_named_and_never_used(
    two: tuple[Path, Path],
) -> None:
    caller, clone = two
    inputs = read_inputs("folder", caller)
    assert list(inputs.pulled) == ["data/raw"]
    assert inputs.files == ["seen.txt"]
    assert set(inputs.lock) == {"fetch", "see"}
    assert inputs.unpushed_outs == ["metrics/folder.json"]
    compute("folder", caller, clone)
    arrivals.put_into_cache((clone / "metrics" / "folder.json").read_text(), caller)
    assert dvc_commands.run_stage("folder", caller, print, restore=True) == "restored"
    assert (caller / "metrics" / "folder.json").read_text() == "1\n"
    digests = arrivals.out_digests(arrivals.lock_entries(clone)["folder"])
    arrivals.check_digests(digests, caller)
    assert arrivals.digest(caller / "models" / "folder") == digests["models/folder"]

    # the same, when a file in the remote is damaged
    name = arrivals.md5_of(clone / "models" / "folder" / "in" / "one")
    stored = caller.parent / "remote" / "files" / "md5" / name[:2] / name[2:]
    stored.chmod(0o644)
    stored.write_text("eno\n")
    for kept in (caller / "models" / "folder", caller / ".dvc" / "cache" / "files"):
        shutil.rmtree(kept)
    arrivals.put_into_cache("1\n", caller)
    assert dvc_commands.run_stage("folder", caller, print, restore=True) == "restored"  # DVC itself does not look
    listed = digests["models/folder"]
    where = f"files/md5/{name[:2]}/{name[2:]} and files/md5/{listed[:2]}/{listed[2:]}"
    with pytest.raises(StageFailed, match=f"it is damaged in the DVC remote; delete {where} there, and run again"):
        arrivals.check_digests(digests, caller)
    assert not (caller / "models" / "folder").exists()
    for file in where.split(" and "):
        (caller.parent / "remote" / file).unlink()
    dvc_commands.run_dvc(clone, "push", "folder")
    assert dvc_commands.run_stage("folder", caller, print, restore=True) == "restored"
    arrivals.check_digests(digests, caller)


def test_a_workers_result_that_names_other_paths_than_the_stages_outputs_removes_nothing(
    two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    caller, _ = two
    precious = caller.parent / "precious"
    precious.mkdir()
    digest, told = "0" * 32, list[dict[str, str]]()

    class Client:
        def __enter__(self) -> Client:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def read_artifacts(self, **_: Any) -> list[Any]:
            data = {"outs": told[-1], "files": {}, "trainings": {}, "outcome": "ran"}
            return [SimpleNamespace(data=json.dumps(data))]

    monkeypatch.setattr(training_pool, "get_client", lambda **_: Client())
    monkeypatch.setattr(dvc_commands, "run_stage", lambda *_, **__: "restored")
    for outs, why in (
        ({"models/a": digest, "../precious": digest}, r"'\.\./precious' is not in both"),
        ({str(precious): digest}, "is not in both"),
        ({}, "'models/a' is not in both"),
        ({"models/a": "../../../../../precious"}, "not a digest"),
    ):
        told.append(outs)
        with pytest.raises(StageFailed, match=why):
            training_pool._take_over("train@a", uuid4(), caller, print)
    assert precious.is_dir()


def test_a_clone_goes_to_a_commit_that_it_fetches_and_keeps_what_a_person_changed(project: tuple[Path, Path]) -> None:
    caller, clone = project
    (caller / "params.yaml").write_text((caller / "params.yaml").read_text().replace("steps: 1", "steps: 2"))
    git(caller, "commit", "-qam", "longer")
    commit = commits.head(caller)
    (clone / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    (clone / "params.yaml").write_text("edited\n")
    with pytest.raises(DensitywatchError, match=r"has changes in params.yaml; commit them or take them back"):
        commits.go_to(clone, commit)
    assert (clone / "params.yaml").read_text() == "edited\n"
    git(clone, "checkout", "-q", "params.yaml")
    commits.go_to(clone, commit)
    assert commits.head(clone) == commit
    assert "steps: 2" in (clone / "params.yaml").read_text()
    with pytest.raises(DensitywatchError, match=r"none of its git remotes has 0123012301; push that commit"):
        commits.go_to(clone, "0123" * 10)
    with pytest.raises(DensitywatchError, match="is not a commit; give its 40 digits"):
        commits.go_to(clone, "--upload-pack=x")


def test_only_what_is_committed_can_be_computed_elsewhere(project: tuple[Path, Path]) -> None:
    caller, _ = project
    commits.check_committed(caller)  # dvc.lock is new, and a run writes it
    (caller / "src").mkdir()
    (caller / "src" / "new.py").touch()
    (caller / "note.txt").touch()
    with pytest.raises(DensitywatchError, match=r"a worker trains what is committed, and src/new.py is not; commit it"):
        commits.check_committed(caller)


def replace(file: Path, old: str, new: str) -> None:
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def no_remote(root: Path) -> None:
    replace(root / ".dvc" / "config", "remote = shared", "")


def over_http(root: Path) -> None:
    replace(root / ".dvc" / "config", f"url = {root.parent / 'remote'}", "url = https://example.org/store")


def edited(root: Path) -> None:
    (root / "params.yaml").write_text("models: {}\n")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_remote, r"no default DVC remote is set, .* \.venv/bin/dvc remote add --default NAME ADDRESS"),
        (over_http, r"DVC keeps no run cache in an http remote; use another kind, such as s3 or ssh"),
        (edited, r"a worker trains what is committed, and params.yaml is not; commit it first"),
    ],
)
def test_what_the_pool_needs_is_asked_for_in_one_sentence_before_anything_runs(
    project: tuple[Path, Path], spoil: Callable[[Path], None], said: str
) -> None:
    caller, _ = project
    spoil(caller)
    with pytest.raises(DensitywatchError, match=said):
        training_pool.check(caller)


def test_stages_that_train_go_to_the_pool_and_no_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(training_pool, "check", lambda root: None)
    names = ("fetch", "train_classifier", "train@vae", "evaluate@vae", "calibrate")
    stages = [dvc_graph.Stage(name, (), True) for name in names]
    assert set(training_pool.elsewhere("pool", stages, tmp_path)) == {"train_classifier", "train@vae"}
    assert training_pool.elsewhere("here", stages, tmp_path) == {}


def test_a_worker_with_other_packages_says_which_and_another_build_of_one_will_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train_model, "installed_packages", lambda: {"torch": "2.14.1+cpu", "numpy": "2.3"})
    train_model.check_packages({"torch": "2.14.1", "numpy": "2.3"})
    with pytest.raises(StageFailed, match=r"this worker has torch 2.14.1\+cpu where the caller has 2.15.0; run `make"):
        train_model.check_packages({"torch": "2.15.0", "numpy": "2.3"})


def test_the_packages_compared_are_those_that_the_project_asks_for() -> None:
    found = train_model.installed_packages()
    assert {"torch", "numpy", "lightning-fabric", "dvc", "prefect"} <= set(found)
    assert "mkdocs-material" not in found


def test_a_caller_writes_metrics_into_a_clone_and_nothing_else(tmp_path: Path) -> None:
    train_model.lay_out({}, {"metrics/data.json": "{}\n"}, tmp_path)
    assert (tmp_path / "metrics" / "data.json").read_text() == "{}\n"
    for name in ("src/code.py", "metrics/../dvc.yaml", "/tmp/elsewhere"):
        with pytest.raises(StageFailed, match="is not in metrics/, and a caller writes nowhere else"):
            train_model.lay_out({}, {name: "text"}, tmp_path)


def test_a_worker_without_a_clone_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(worker.CLONE, raising=False)
    with pytest.raises(DensitywatchError, match="start workers of training with `make worker`"):
        worker.enter_clone()


@pytest.mark.slow
def test_a_worker_needs_a_server_and_the_number_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with pytest.raises(DensitywatchError, match=r"GPU=first: not the number of a GPU; nvidia-smi lists them"):
        worker.start(tmp_path, "first")
    with pytest.raises(
        DensitywatchError, match=r"no Prefect server answers; start one with `make up`, or name the one"
    ):
        worker.start(tmp_path, None)


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_a_job_template_gives_a_run_its_clone_and_has_a_variable_for_each_of_its_places(
    kind: str, project_root: Path
) -> None:
    text = (project_root / "pipelines" / "pools" / f"{kind}.json").read_text()
    template = json.loads(text)
    variables = template["variables"]["properties"]
    places = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert places <= set(variables)
    assert variables["env"]["default"][worker.CLONE] == "/densitywatch"


class Server:
    """Prefect as far as the caller asks it: a run that has these states one after the other, and these workers."""

    def __init__(self, *states: State[Any], workers: Sequence[str] = ("ONLINE",)) -> None:
        self.states, self.workers, self.set = list(states), workers, list[State[Any]]()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read_flow_run(self, run_id: UUID) -> Any:
        return SimpleNamespace(id=run_id, state=self.states.pop(0) if len(self.states) > 1 else self.states[0])

    def set_flow_run_state(self, run_id: UUID, state: State[Any], force: bool = False) -> None:
        self.set.append(state)
        if state.is_final():
            self.states = [state]

    def read_workers_for_work_pool(self, pool: str) -> list[Any]:
        return [SimpleNamespace(status=WorkerStatus(status)) for status in self.workers]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Callable[[Server], None]:
    """A caller that waits for nothing and talks to the server that is given."""
    monkeypatch.setattr(training_pool, "LOOK_EVERY", 0.001)
    monkeypatch.setattr(training_pool, "NO_WORKER_SECONDS", 0.01)
    monkeypatch.setattr(training_pool, "PENDING_SECONDS", 0.01)
    return lambda server: monkeypatch.setattr(training_pool, "get_client", lambda **_: server)


def test_a_run_that_waits_for_workers_that_have_gone_ends_and_is_cancelled(quick: Callable[[Server], None]) -> None:
    server = Server(Scheduled(), workers=["OFFLINE"])
    quick(server)
    with pytest.raises(StageFailed, match="no worker is online in the pool training; start one: make worker GPU=0"):
        training_pool._wait(uuid4(), "train@a", print)
    assert [state.type for state in server.set] == [StateType.CANCELLING]


def test_a_run_that_a_worker_took_and_never_began_counts_as_dead(quick: Callable[[Server], None]) -> None:
    server = Server(Pending())
    quick(server)
    run = training_pool._wait(uuid4(), "train@a", print)
    assert run.state is not None
    assert run.state.type == StateType.CRASHED


def test_a_caller_that_is_told_to_stop_cancels_the_workers_run(
    quick: Callable[[Server], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(Running())
    quick(server)

    def stop() -> None:
        raise stopping.Stopped(signal.SIGINT)

    monkeypatch.setattr(stopping, "stop_if_asked", stop)
    with pytest.raises(stopping.Stopped):
        training_pool._wait(uuid4(), "train@a", print)
    assert [state.type for state in server.set] == [StateType.CANCELLING]


@pytest.mark.parametrize(
    ("ends", "asked", "said"),
    [
        ([Crashed(message="killed"), Completed(message="train@a: ran")], 2, None),
        ([Crashed(message="killed")] * 3, 3, r"stage train@a on the pool training: 3 workers died over it; killed"),
        ([Failed(message="no data")], 1, r"stage train@a on the pool training: no data"),
        ([Cancelled(message="by hand")], 1, r"stage train@a on the pool training: by hand"),
    ],
)
def test_a_dead_worker_is_replaced_twice_and_a_failure_is_told_at_once(
    ends: list[State[Any]], asked: int, said: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def not_there(*_: object, **__: object) -> None:
        raise StageFailed("not there")

    ids: list[UUID] = []

    def ask(name: str, request: object) -> Any:
        ids.append(uuid4())
        return SimpleNamespace(id=ids[-1])

    monkeypatch.setattr(dvc_commands, "run_stage", not_there)
    monkeypatch.setattr(training_pool, "_request", lambda name, root: {})
    monkeypatch.setattr(training_pool, "_ask", ask)
    monkeypatch.setattr(training_pool, "_wait", lambda id, *_: SimpleNamespace(id=id, state=ends[len(ids) - 1]))
    monkeypatch.setattr(training_pool, "_take_over", lambda name, id, *_: "ran" if id == ids[-1] else "skipped")
    with pytest.raises(StageFailed, match=said) if said else nullcontext():
        assert training_pool.run_stage("train@a", tmp_path, print) == "ran"
    assert len(ids) == asked


STAND_IN = """
import os, subprocess, sys, time
run = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(run.pid, *sys.argv[1:], flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_when_a_worker_is_killed_its_runs_end_too(tmp_path: Path, project_root: Path) -> None:
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect" / "__init__.py").touch()
    (tmp_path / "prefect" / "__main__.py").write_text(STAND_IN)
    path = os.pathsep.join(map(str, [tmp_path, project_root / "src", project_root]))
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.worker", "--serve", "mine"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    number, *asked = process.stdout.readline().split()
    assert asked == ["worker", "start", "--pool", "training", "--name", "mine", "--limit", "1"]
    process.kill()
    process.wait()
    until = time.monotonic() + 60
    while psutil.pid_exists(int(number)) and psutil.Process(int(number)).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, "the run goes on"
        time.sleep(0.1)
    process.stdout.close()
