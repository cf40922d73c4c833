"""Open a pull request with what a run of this commit changed: `python -m pipelines propose BASE`, after `ask`.

The commit is made of git's objects alone: no file of the working tree and no branch of this repository changes. git and
GitHub's program `gh` are needed, and in GH_TOKEN a token that may write contents and pull requests.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from densitywatch.errors import DataError, DensitywatchError
from densitywatch.text import as_text
from pipelines import ask_retrain, retrain_result
from pipelines.git_files import check_ref, commit_of, git

REMOTE = "origin"
PUSH_SECONDS = 300.0
GH_SECONDS = 120.0
"""How long one command of gh may take: it makes a few small requests, of seconds each."""
LOGIN = ("-c", "credential.helper=", "-c", "credential.helper=!gh auth git-credential")


def branch_of(result: dict[str, Any]) -> str:
    """The branch of the pull request: one for each retrained commit, so that a second run renews it."""
    return f"retrain/{result['commit'][:12]}"


def commit_files(root: Path, result: dict[str, Any]) -> str | None:
    """A commit on top of the retrained one with the files of the result; None where they are what it has.

    Raises DensitywatchError when this repository lacks the retrained commit.
    """
    parent = result["commit"]
    if commit_of(root, parent) is None:
        raise DensitywatchError(f"the result is of commit {parent[:12]}, which is not in {root}; fetch it first")
    entries = [f"0 {'0' * len(parent)}\t{name}\n" for name in result["removed"]]
    for name, text in result["files"].items():
        blob = git(root, "hash-object", "-w", "--stdin", given=text).strip()
        entries.append(f"100644 {blob}\t{name}\n")
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        git(root, "read-tree", parent, index=index)
        git(root, "update-index", "--index-info", given="".join(entries), index=index)
        tree = git(root, "write-tree", index=index).strip()
    if tree == git(root, "rev-parse", f"{parent}^{{tree}}").strip():
        return None
    return git(root, "commit-tree", tree, "-p", parent, "-m", retrain_result.title(result)).strip()


def open_request(root: Path, result: dict[str, Any], commit: str, base: str) -> str:
    """Push the commit to its branch and have a pull request for it; return the request's address.

    Raises DensitywatchError with the last line of git or gh.
    """
    branch = branch_of(result)
    git(root, *LOGIN, "push", "--quiet", "--force", REMOTE, f"{commit}:refs/heads/{branch}", seconds=PUSH_SECONDS)
    # --head also finds a fork's branch of this name
    own = ("--json", "url,isCrossRepository", "--jq", ".[] | select(.isCrossRepository | not) | .url")
    present = _gh(root, "pr", "list", "--head", branch, "--state", "open", *own)
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder) / "body.md"
        body.write_text(retrain_result.page(result), encoding="utf-8")
        title = retrain_result.title(result)
        if present:
            address = present.splitlines()[0]
            _gh(root, "pr", "edit", address, "--title", title, "--body-file", str(body))
            return address
        return _gh(root, "pr", "create", "--base", base, "--head", branch, "--title", title, "--body-file", str(body))


def _gh(root: Path, *arguments: str) -> str:
    program = shutil.which("gh")
    if program is None:
        raise DensitywatchError("GitHub's program gh is not installed; install it, or open the pull request by hand")
    try:
        done = subprocess.run(  # noqa: S603
            [program, *arguments], cwd=root, capture_output=True, text=True, timeout=GH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise DensitywatchError(
            f"gh {' '.join(arguments[:2])}: no answer within {GH_SECONDS:.0f} s; the branch is pushed, run it again"
        ) from None
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise DensitywatchError(
            f"gh {' '.join(arguments[:2])}: {as_text(said[-1][:300]) if said else 'it failed without a message'}; the"
            " branch is pushed (may Actions open pull requests? Settings, Actions, General says)"
        )
    return done.stdout.strip()


def main(arguments: list[str]) -> int:
    """Exit code 0: a pull request is open, or nothing has changed; 1: one sentence says what is in the way."""
    parser = argparse.ArgumentParser(prog="python -m pipelines propose", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("base", help="the branch that the pull request is for")
    given, root = parser.parse_args(arguments), Path.cwd()
    try:
        check_ref(given.base)
        try:
            result = retrain_result.check(json.loads((root / ask_retrain.RESULT).read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise DataError(f"no {ask_retrain.RESULT} here; `python -m pipelines ask REF` writes it") from None
        except ValueError:
            raise DataError(f"{ask_retrain.RESULT}: not whole JSON; ask again") from None
        commit = commit_files(root, result)
        if commit is None:
            print("nothing changed: no pull request")
            return 0
        print(f"pull request: {open_request(root, result, commit, given.base)}")
    except DensitywatchError as error:
        print(f"pipelines: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
