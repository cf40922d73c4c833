"""What the placement `pool` rests on, without a server: commits, inputs, and results that come through the remote."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from densitywatch.errors import DensitywatchError
from pipelines import arrivals, commits, dvc_commands, dvc_graph, train_model, training_pool, worker
from pipelines.dvc_commands import StageFailed
from pipelines.stage_inputs import read_inputs
from tests.marks import marks

FOLDER = """
  folder:
    cmd: mkdir -p models/folder/in && echo {word} > models/folder/in/one && echo two > models/folder/two
    deps: [data/raw, seen.txt]
    outs: [models/folder]
    metrics: [{{metrics/folder.json: {{cache: false}}}}]
  see:
    cmd: echo seen > seen.txt
    deps: [data/raw]
    outs: [{{seen.txt: {{cache: false}}}}]
"""


def git(root: Path, *words: str) -> str:
    identity = ("-c", "user.name=tests", "-c", "user.email=tests@localhost")
    done = subprocess.run(["git", *identity, *words], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def dvc(root: Path, *words: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *words], cwd=root, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
@marks("slow")
def two(toy: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two clones of one commit with one DVC remote. The first has run `fetch`, the second nothing."""
    dvc(toy, "remote", "add", "-q", "--default", "shared", str(tmp_path / "remote"))
    with (toy / "dvc.yaml").open("a") as file:
        file.write(
            FOLDER.format(word="one").replace(
                "&& echo two", "&& mkdir -p metrics && echo 1 > metrics/folder.json && echo two"
            )
        )
    (toy / ".gitignore").write_text("/data\n/models\n/metrics\n/report.txt\n/seen.txt\n/notes.txt\n")
    git(toy, "add", "-A")
    git(toy, "commit", "-qm", "toy")
    git(toy, "clone", "-q", str(toy), str(tmp_path / "clone"))
    dvc(toy, "repro", "-q", "fetch", "see")
    dvc(toy, "push", "-q", "data/raw")
    return toy, tmp_path / "clone"


def compute(name: str, caller: Path, clone: Path) -> None:
    """What a worker does with a stage, without Prefect."""
    inputs = read_inputs(name, caller)
    train_model.lay_out(inputs.lock, {}, clone)
    for path in inputs.files:
        (clone / path).write_bytes((caller / path).read_bytes())
    dvc(clone, "pull", "-q", *inputs.pulled)
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


def test_a_folder_and_a_metric_that_git_keeps_arrive_too(two: tuple[Path, Path]) -> None:
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


def test_what_is_damaged_in_the_remote_is_named_and_never_used(two: tuple[Path, Path], tmp_path: Path) -> None:
    caller, clone = two
    compute("folder", caller, clone)
    arrivals.put_into_cache((clone / "metrics" / "folder.json").read_text(), caller)
    name = arrivals.md5_of(clone / "models" / "folder" / "in" / "one")
    stored = tmp_path / "remote" / "files" / "md5" / name[:2] / name[2:]
    stored.chmod(0o644)
    stored.write_text("eno\n")
    dvc_commands.run_stage("folder", caller, print, restore=True)  # DVC itself does not look
    digests = arrivals.out_digests(arrivals.lock_entries(clone)["folder"])
    with pytest.raises(StageFailed, match=f"files/md5/{name[:2]}/{name[2:]} is damaged; delete that there"):
        arrivals.check_digests(digests, caller)
    assert not (caller / "models" / "folder").exists()
    stored.unlink()
    dvc_commands.run_dvc(clone, "push", "folder")
    assert dvc_commands.run_stage("folder", caller, print, restore=True) == "restored"
    arrivals.check_digests(digests, caller)


def test_a_clone_goes_to_a_commit_that_it_fetches_and_keeps_what_a_person_changed(two: tuple[Path, Path]) -> None:
    caller, clone = two
    (caller / "params.yaml").write_text((caller / "params.yaml").read_text().replace("steps: 1", "steps: 2"))
    git(caller, "commit", "-qam", "longer")
    commit = commits.commit_of(caller)
    (clone / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    (clone / "params.yaml").write_text("edited\n")
    with pytest.raises(commits.GitFailed, match=r"has changes in params.yaml; commit them or take them back"):
        commits.go_to(clone, commit)
    assert (clone / "params.yaml").read_text() == "edited\n"
    git(clone, "checkout", "-q", "params.yaml")
    commits.go_to(clone, commit)
    assert commits.commit_of(clone) == commit
    assert "steps: 2" in (clone / "params.yaml").read_text()
    with pytest.raises(commits.GitFailed, match=r"none of its git remotes has 0123012301; push that commit"):
        commits.go_to(clone, "0123" * 10)
    with pytest.raises(commits.GitFailed, match="is not a commit; give its 40 digits"):
        commits.go_to(clone, "--upload-pack=x")


def test_only_what_is_committed_can_be_computed_elsewhere(two: tuple[Path, Path]) -> None:
    caller, _ = two
    commits.check_committed(caller)  # dvc.lock is new, and a run writes it
    (caller / "src").mkdir()
    (caller / "src" / "new.py").touch()
    (caller / "note.txt").touch()
    with pytest.raises(commits.GitFailed, match=r"a worker trains what is committed, and src/new.py is not; commit it"):
        commits.check_committed(caller)


def no_remote(root: Path) -> None:
    dvc(root, "remote", "remove", "shared")


def over_http(root: Path) -> None:
    dvc(root, "remote", "modify", "shared", "url", "https://example.org/store")


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
    two: tuple[Path, Path], spoil: Callable[[Path], None], said: str
) -> None:
    caller, _ = two
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
