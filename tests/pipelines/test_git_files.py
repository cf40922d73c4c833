"""References that are none, what is not committed, and what a run has changed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from densitywatch.errors import DensitywatchError
from pipelines import git_files


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    (root / "metrics").mkdir(parents=True)
    (root / "metrics" / "a.json").write_text("{}")
    (root / "params.yaml").write_text("seed: 1\n")
    (root / "dvc.lock").write_text("stages: {}\n")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"], ["tag", "v1"]):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *command], cwd=root, check=True)
    return root


def test_commits_branches_and_tags_are_found(repository: Path) -> None:
    commit = git_files.commit_of(repository, "HEAD")
    assert commit is not None
    assert len(commit) == 40
    assert {git_files.commit_of(repository, ref) for ref in ("v1", commit, commit[:9])} == {commit}
    assert git_files.commit_of(repository, "nowhere") is None
    assert git_files.commit_of(repository, "f" * 40) is None


@pytest.mark.parametrize("ref", ["-f", "--upload-pack=x", "", "a b", "a..b", "a:b", ":/text", "x\ny", "é", "a" * 300])
def test_what_is_no_reference_is_refused_in_one_sentence(repository: Path, ref: str) -> None:
    with pytest.raises(DensitywatchError, match="is no git reference; give a commit, a branch or a tag"):
        git_files.commit_of(repository, ref)


def test_a_folder_without_a_repository_is_named(tmp_path: Path) -> None:
    assert not git_files.is_repository(tmp_path)
    with pytest.raises(DensitywatchError, match="is no git repository"):
        git_files.commit_of(tmp_path, "main")


def test_code_and_results_that_are_not_committed_are_told_apart(repository: Path) -> None:
    assert git_files.changed(repository) == []
    (repository / "params.yaml").write_text("seed: 2\n")
    (repository / "a new\nname.py").touch()
    (repository / "dvc.lock").write_text("stages: {a: 1}\n")
    (repository / "metrics" / "a.json").unlink()
    (repository / "metrics" / "b.json").write_text("{}")
    (repository / "metrics" / "notes.txt").touch()
    assert git_files.uncommitted(repository) == ["a new\nname.py", "metrics/notes.txt", "params.yaml"]
    assert git_files.unkept_results(repository) == ["dvc.lock", "metrics/a.json", "metrics/b.json"]


def test_variables_of_a_git_hook_do_not_lead_to_another_repository(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    subprocess.run(["git", "init", "-q", str(other)], check=True)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert git_files.commit_of(repository, "v1") is not None


def test_a_failure_of_git_is_its_last_line(repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(DensitywatchError, match="git cat-file: fatal: Not a valid object name nothing"):
        git_files.git(repository, "cat-file", "-p", "nothing")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DensitywatchError, match="git is not installed"):
        git_files.git(repository, "status")
