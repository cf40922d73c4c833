from __future__ import annotations

import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from densitywatch.files import file_digest
from pipelines import dvc_commands, dvc_graph
from pipelines.stage_tasks import run_here

NODES = re.compile(r'^\s*"([^"]+)";?$', re.MULTILINE)
EDGES = re.compile(r'"([^"]+)" -> "([^"]+)"')


def dvc(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=root, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("which", ["toy", "project_root"])
def test_tasks_and_their_order_equal_what_dvc_dag_prints(which: str, request: pytest.FixtureRequest) -> None:
    root: Path = request.getfixturevalue(which)
    printed = dvc(root, "dag", "--dot")
    edges = {(before, after) for before, after in EDGES.findall(printed) if not before.endswith(".dvc")}
    nodes = {name for name in NODES.findall(printed) if not name.endswith(".dvc")} | {n for edge in edges for n in edge}
    stages = dvc_graph.read_graph(root)
    assert {stage.name for stage in stages} == nodes
    assert {(before, stage.name) for stage in stages for before in stage.after} == edges


def test_every_stage_comes_after_those_it_depends_on_and_data_files_are_no_stages(toy: Path) -> None:
    stages = dvc_graph.read_graph(toy)
    names = [stage.name for stage in stages]
    assert names.index("fetch") == 0
    assert names[-1] == "report"
    assert all(names.index(before) < names.index(stage.name) for stage in stages for before in stage.after)
    assert not any(name.endswith(".dvc") for name in names)


def test_stages_that_touch_a_model_use_the_device_and_others_do_not(project_root: Path) -> None:
    uses = {stage.name: stage.uses_device for stage in dvc_graph.read_graph(project_root)}
    assert all(used for name, used in uses.items() if name.startswith(("train@", "evaluate@")))
    assert not any(uses[name] for name in ("fetch", "prepare", "validate", "report"))


def test_a_stage_runs_then_is_skipped_and_comes_back_from_the_cache(toy: Path) -> None:
    def outcome(stage: str) -> str:
        return dvc_commands.run_stage(stage, toy, lambda line: None)

    text = (toy / "params.yaml").read_text()
    assert outcome("fetch") == "ran"
    assert outcome("train@a") == "ran"
    assert outcome("train@a") == "skipped"
    (toy / "params.yaml").write_text(text.replace("a: {kind: one, steps: 1}", "a: {kind: one, steps: 2}"))
    assert outcome("train@a") == "ran"
    (toy / "params.yaml").write_text(text)
    assert outcome("train@a") == "restored"
    assert (toy / "models" / "a").read_text() == "a 1\n"


def test_a_result_that_is_damaged_in_the_cache_is_made_again(toy: Path) -> None:
    for name in ("fetch", "train@a"):
        assert run_here(name, toy, print) == "ran"
    model = toy / "models" / "a"
    made = model.read_bytes()
    digest = file_digest(model, "md5")
    cached = toy / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]
    cached.chmod(0o644)
    cached.write_bytes(made[:2])
    cached.chmod(0o444)
    model.unlink()
    said: list[str] = []
    assert run_here("train@a", toy, said.append) == "ran"
    assert model.read_bytes() == made
    assert "train@a: its result in DVC's cache is damaged; it is made again" in said
    assert cached.read_bytes() == made


def test_one_changed_model_block_trains_that_model_alone(toy: Path) -> None:
    dvc(toy, "repro", "-q")
    assert dvc_commands.stale_stages(toy) == set()
    text = (toy / "params.yaml").read_text()
    (toy / "params.yaml").write_text(text.replace("b: {kind: one, steps: 1}", "b: {kind: one, steps: 9}"))
    assert dvc_commands.stale_stages(toy) == {"train@b"}
    ran = re.findall(r"Running stage '(.+)'", dvc(toy, "repro"))
    assert ran == ["train@b", "evaluate@b", "report"]


def test_in_the_real_graph_a_models_block_is_a_parameter_of_its_own_training_alone(project_root: Path) -> None:
    from dvc.repo import Repo

    with Repo(str(project_root)) as repo:
        for stage in repo.index.stages:
            read = {name for dep in stage.deps for name in getattr(dep, "params", None) or ()}
            blocks = {name for name in read if name.startswith("models")}
            if stage.addressing.startswith("train@"):
                assert blocks == {f"models.{stage.addressing.partition('@')[2]}"}


def test_a_failing_stage_says_its_own_last_words(toy: Path) -> None:
    text = (toy / "dvc.yaml").read_text()
    failing = "echo working; echo 'densitywatch: data/raw: altered; run it again' >&2; exit 1"
    (toy / "dvc.yaml").write_text(text.replace("mkdir -p data && echo raw > data/raw", f'"{failing}"'))
    said: list[str] = []
    with pytest.raises(dvc_commands.StageFailed, match=r"^stage fetch: data/raw: altered; run it again$"):
        dvc_commands.run_stage("fetch", toy, said.append)
    assert "working" in said


def test_a_broken_graph_is_one_sentence_in_dvcs_words(toy: Path) -> None:
    (toy / "dvc.yaml").write_text("stages: [")
    with pytest.raises(dvc_commands.StageFailed, match=r"^dvc status: .*dvc\.yaml"):
        dvc_commands.stale_stages(toy)


def test_what_dvc_advises_people_who_type_is_not_passed_on(toy: Path) -> None:
    said: list[str] = []
    dvc_commands.run_stage("fetch", toy, said.append)
    assert any(line.startswith("Running stage 'fetch'") for line in said)
    assert not any("git add" in line or "dvc push" in line for line in said)


@pytest.mark.parametrize("what", ["dvc push", "dvc pull", "restoring train@a"])
def test_a_transfer_that_hangs_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    hangs = "sleep 20 & echo $! > child; wait"
    monkeypatch.setattr(dvc_commands, "_dvc", lambda *options: ["sh", "-c", hangs])
    (tmp_path / "restore.py").write_text(f"import subprocess; subprocess.run(['sh', '-c', {hangs!r}])")
    monkeypatch.setattr(dvc_commands, "RESTORE", str(tmp_path / "restore.py"))
    monkeypatch.setattr(dvc_commands, "TRANSFER_SECONDS", 1.0)
    transfer = (
        partial(dvc_commands.run_dvc, tmp_path, what.removeprefix("dvc "))
        if what.startswith("dvc ")
        else partial(dvc_commands.run_stage, "train@a", tmp_path, print, restore=True)
    )
    with pytest.raises(dvc_commands.StageFailed, match=rf"^{what}: not done within 0\.0 h.*run it again"):
        transfer()
    until = time.monotonic() + 10
    while _runs(int((tmp_path / "child").read_text())):
        assert time.monotonic() < until
        time.sleep(0.05)


def _runs(number: int) -> bool:
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_remote_folder_is_asked_only_when_something_is_in_it(toy: Path, tmp_path: Path) -> None:
    assert dvc_commands.default_remote(toy) is None
    store = tmp_path / "store"
    dvc(toy, "remote", "add", "-d", "local", str(store))
    assert dvc_commands.default_remote(toy) == str(store)
    assert not dvc_commands.holds_something(str(store))
    dvc(toy, "repro", "-q", "fetch")
    dvc(toy, "push")
    assert dvc_commands.holds_something(str(store))
    assert dvc_commands.holds_something("s3://bucket/dvc")
