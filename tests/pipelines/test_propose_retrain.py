"""The pull request of a retrained commit: pushed to a real repository; GitHub's program is a stand-in."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from densitywatch.errors import DensitywatchError
from pipelines import propose_retrain
from pipelines.__main__ import main
from tests.pipelines.test_retrain_result import result

GH = """#!/bin/sh
printf '%s\\n' "$@" >> "{notes}"
echo -- >> "{notes}"
if [ -e "{broken}" ]; then echo "GraphQL: GitHub Actions is not permitted to create pull requests" >&2; exit 1; fi
case "$2" in
  list) case "$*" in *isCrossRepository*not*) cat "{open}" 2>/dev/null;; *) echo https://github.com/fork/y/pull/9;; esac
    exit 0;;
  create|edit) while [ $# -gt 0 ]; do [ "$1" = --body-file ] && cp "$2" "{body}"; shift; done
    echo https://github.com/x/y/pull/1 | tee "{open}";;
esac
"""


def git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@localhost", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def ci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout as CI has it, with a result of its commit, an origin, and a `gh` that takes notes."""
    origin, root, programs = tmp_path / "origin.git", tmp_path / "ci", tmp_path / "bin"
    subprocess.run(["git", "init", "-q", "--bare", str(origin)], check=True)
    subprocess.run(["git", "init", "-q", "-b", "main", str(root)], check=True)
    (root / "metrics").mkdir()
    (root / "metrics" / "gan.json").write_text("{}\n")
    (root / "dvc.lock").write_text("old\n")
    (root / ".gitignore").write_text("/var\n")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "code")
    git(root, "remote", "add", "origin", str(origin))
    git(root, "push", "-q", "origin", "main")
    write_result(root, commit=git(root, "rev-parse", "HEAD").strip())
    programs.mkdir()
    gh = programs / "gh"
    names = {name: tmp_path / name for name in ("notes", "open", "body", "broken")}
    gh.write_text(GH.format(**names))
    gh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "bot")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "bot@localhost")
    monkeypatch.chdir(root)
    return root


def write_result(root: Path, **changes: object) -> None:
    path = root / "var" / "retrain" / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result(**changes)))


def test_the_files_of_the_result_become_a_branch_and_a_pull_request(
    ci: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = git(ci, "rev-parse", "HEAD").strip()
    assert main(["propose", "main"]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out == "pull request: https://github.com/x/y/pull/1\n"
    branch = f"retrain/{before[:12]}"
    assert git(tmp_path / "origin.git", "show", f"{branch}:dvc.lock") == "stages: {}\n"
    changes = git(tmp_path / "origin.git", "diff", "--name-status", before, branch).split()
    assert changes == ["M", "dvc.lock", "D", "metrics/gan.json", "A", "metrics/vae.json"]
    assert git(tmp_path / "origin.git", "log", "-1", "--format=%an|%s|%P", branch).strip() == (
        f"bot|Retrain {before[:12]}: vae promoted|{before}"
    )
    asked = (tmp_path / "notes").read_text()
    assert f"create\n--base\nmain\n--head\n{branch}\n--title\nRetrain {before[:12]}: vae promoted\n" in asked
    assert "## Verdicts" in (tmp_path / "body").read_text()


def test_the_checkout_stays_as_it_was(ci: Path) -> None:
    (ci / "dvc.lock").write_text("edited by a person\n")
    before = (git(ci, "status", "--porcelain"), git(ci, "branch"), git(ci, "rev-parse", "HEAD"))
    assert main(["propose", "main"]) == 0
    assert (git(ci, "status", "--porcelain"), git(ci, "branch"), git(ci, "rev-parse", "HEAD")) == before


def test_a_second_result_of_the_commit_renews_the_branch_and_opens_no_second_request(ci: Path, tmp_path: Path) -> None:
    commit = git(ci, "rev-parse", "HEAD").strip()
    assert main(["propose", "main"]) == 0
    (tmp_path / "body").unlink()
    write_result(ci, commit=commit, files={"dvc.lock": "newer\n"}, removed=[])
    assert main(["propose", "main"]) == 0
    assert git(tmp_path / "origin.git", "show", f"retrain/{commit[:12]}:dvc.lock") == "newer\n"
    assert "edit\nhttps://github.com/x/y/pull/1\n--title\n" in (tmp_path / "notes").read_text()
    assert "## Verdicts" in (tmp_path / "body").read_text(), "the text of the request is that of the second result"
    assert (tmp_path / "notes").read_text().count("create") == 1


def test_a_run_that_changed_nothing_opens_nothing(ci: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commit = git(ci, "rev-parse", "HEAD").strip()
    for files in ({}, {"dvc.lock": "old\n"}):
        write_result(ci, commit=commit, files=files, removed=[])
        assert main(["propose", "main"]) == 0
        assert capsys.readouterr().out == "nothing changed: no pull request\n"
    assert not (tmp_path / "notes").exists()
    assert "retrain/" not in git(tmp_path / "origin.git", "branch")


def test_what_is_in_the_way_is_one_sentence(ci: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*base: str) -> str:
        assert main(["propose", *(base or ("main",))]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    (tmp_path / "broken").touch()
    assert "GitHub Actions is not permitted to create pull requests; the branch is pushed" in said()
    assert "'--delete' is no git reference" in said("--", "--delete")
    write_result(ci, commit="f" * 40)
    assert "which is not in" in said()
    write_result(ci, files={".github/workflows/ci.yml": "on: push"})
    assert "a file that no run changes" in said()
    (ci / "var" / "retrain" / "result.json").write_text("{")
    assert "not whole JSON" in said()
    (ci / "var" / "retrain" / "result.json").unlink()
    assert "`python -m pipelines ask REF` writes it" in said()


def test_a_machine_without_gh_is_told_so(ci: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    only_git = tmp_path / "only-git"
    only_git.mkdir()
    (only_git / "git").symlink_to("/usr/bin/git")
    monkeypatch.setenv("PATH", str(only_git))
    with pytest.raises(DensitywatchError, match="gh is not installed"):
        propose_retrain.open_request(ci, result(), git(ci, "rev-parse", "HEAD").strip(), "main")


def test_a_gh_that_gets_no_answer_is_ended(ci: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin" / "gh").write_text("#!/bin/sh\nexec sleep 20\n")
    monkeypatch.setattr(propose_retrain, "GH_SECONDS", 1.0)
    with pytest.raises(DensitywatchError, match=r"^gh pr list: no answer within 1 s; the branch is pushed"):
        propose_retrain.open_request(ci, result(), git(ci, "rev-parse", "HEAD").strip(), "main")


def test_the_token_is_not_written_anywhere(ci: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GH_TOKEN", "of-the-test-only")
    assert main(["propose", "main"]) == 0
    for path in [*tmp_path.rglob("*")]:
        if path.is_file():
            assert b"of-the-test-only" not in path.read_bytes(), path
