"""`make fresh`: does dvc.lock belong to the code? Asked of a checkout that has what git keeps and nothing more."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import dvc_commands, fresh

GRAPH = """
stages:
  look:
    cmd: echo seen > seen
    always_changed: true
    outs: [{seen: {persist: true}}]
  train:
    cmd: mkdir -p models/a && cp seen models/a/weights
    params: [steps]
    deps: [seen, code.py]
    outs: [models/a]
  evaluate:
    cmd: mkdir -p metrics && echo '{"loss":1}' > metrics/a.json && mkdir -p reports/a && cp models/a/weights reports/a
    deps: [models/a/weights, code.py]
    outs: [reports/a]
    metrics: [{metrics/a.json: {cache: false}}]
  report:
    cmd: cat metrics/a.json > page.html
    deps: [metrics, reports]
    outs: [page.html]
"""


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose every stage has run, with dvc.lock and metrics committed."""
    root = tmp_path_factory.mktemp("trained") / "origin"
    root.mkdir()
    (root / "dvc.yaml").write_text(GRAPH)
    (root / "params.yaml").write_text("steps: 1\n")
    (root / "code.py").write_text("one = 1\n")
    git(root, "init", "-q")
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=root, check=True)
    dvc_commands.run_dvc(root, "repro")
    git(root, "add", "-A")
    git(root, "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "trained")
    return root


@pytest.fixture
def checkout(trained: Path, tmp_path: Path) -> Path:
    """What CI has: git's files, and no data."""
    root = tmp_path / "checkout"
    subprocess.run(["git", "clone", "-q", str(trained), str(root)], check=True)
    assert not (root / "models" / "a").exists()
    assert not (root / "seen").exists()
    return root


@pytest.mark.slow
def test_a_lock_file_of_this_code_is_fresh_without_any_data(checkout: Path) -> None:
    fresh.check(checkout)


@pytest.mark.slow
def test_it_is_fresh_with_part_of_the_data_too(checkout: Path) -> None:
    (checkout / "reports" / "b").mkdir(parents=True)
    (checkout / "models").mkdir(exist_ok=True)
    assert fresh.stale_in_lock(checkout) == {}


def edited_code(root: Path) -> None:
    (root / "code.py").write_text("one = 2\n")


def edited_params(root: Path) -> None:
    (root / "params.yaml").write_text("steps: 2\n")


def edited_command(root: Path) -> None:
    (root / "dvc.yaml").write_text((root / "dvc.yaml").read_text().replace("cat metrics", "head metrics"))


def edited_metrics(root: Path) -> None:
    (root / "metrics" / "a.json").write_text('{"loss":0}\n')


def lost_metrics(root: Path) -> None:
    shutil.rmtree(root / "metrics")


def lost_code(root: Path) -> None:
    (root / "code.py").unlink()


def another_stage(root: Path) -> None:
    with (root / "dvc.yaml").open("a") as file:
        file.write("  more:\n    cmd: echo more > more\n    outs: [more]\n")


def torn_lock(root: Path) -> None:
    """As after a merge that took one side's `look` and the other's `train`."""
    lock = (root / "dvc.lock").read_text()
    head, mark, tail = lock.partition("outs:\n    - path: seen\n      hash: md5\n      md5: ")
    assert mark
    (root / "dvc.lock").write_text(head + mark + "f" * 32 + tail[32:])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "stage", "reason"),
    [
        (edited_code, "train", "code.py modified"),
        (edited_params, "train", "steps of params.yaml"),
        (edited_command, "report", "changed command"),
        (edited_metrics, "evaluate", "its metrics/a.json modified"),
        (lost_metrics, "evaluate", "its metrics/a.json deleted"),
        (lost_code, "train", "code.py deleted"),
        (another_stage, "more", "dvc.lock does not have it"),
        (torn_lock, "train", "it read another version of seen"),
    ],
)
def test_what_does_not_belong_to_the_lock_file_is_named_in_one_sentence(
    checkout: Path, change: Callable[[Path], None], stage: str, reason: str
) -> None:
    change(checkout)
    with pytest.raises(fresh.NotFresh) as caught:
        fresh.check(checkout)
    said = str(caught.value)
    assert re.search(rf"[ (]{stage}: ([^;)]*, )?{reason}", said), said
    assert said.startswith("dvc.lock does not belong to this code (")
    assert "run `make run` and commit dvc.lock and metrics/" in said
    assert "\n" not in said


@pytest.mark.slow
def test_the_verb_says_it_and_ends_with_the_code_that_ci_reads(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.__main__ import main

    monkeypatch.chdir(checkout)
    assert main(["fresh"]) == 0
    assert capsys.readouterr().out == "dvc.lock belongs to this code\n"
    edited_params(checkout)
    assert main(["fresh"]) == 1
    assert "train: steps of params.yaml" in capsys.readouterr().err
    assert main(["fresh", "now"]) == 2
    with (checkout / "dvc.lock").open("a") as lock:
        lock.write("<<<<<<< ours\n")
    assert main(["fresh"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("pipelines: dvc status: ")


@pytest.mark.slow
def test_dvcs_own_check_would_run_a_stage_for_nothing_and_fails_where_one_is_stale(checkout: Path) -> None:
    """The reason for a check of our own: should DVC mend this, that check can go."""
    said = dvc_commands.run_dvc(checkout, "repro", "--dry", "--allow-missing")
    assert re.findall(r"Running stage '(.+)'", said) == ["look", "report"]
    edited_code(checkout)
    with pytest.raises(dvc_commands.StageFailed, match="seen"):
        dvc_commands.run_dvc(checkout, "repro", "--dry", "--allow-missing")


@pytest.mark.slow
def test_compare_shows_figures_and_params_that_differ_as_markdown(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.__main__ import main

    monkeypatch.chdir(checkout)
    (checkout / "metrics" / "a.json").write_text(json.dumps({"loss": 0.5}))
    edited_params(checkout)
    git(checkout, "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qam", "better")
    assert main(["compare", "HEAD~1"]) == 0
    said = capsys.readouterr().out
    assert "## Metrics" in said
    assert "| metrics/a.json | loss" in " ".join(said.split())
    assert "| params.yaml | steps" in " ".join(said.split())
    for ref, message in (("nowhere", "git does not know 'nowhere'"), ("--all", "'--all' is no git reference")):
        assert main(["compare", ref]) == 1
        assert message in capsys.readouterr().err
