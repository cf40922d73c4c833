"""Git: which commit a checkout is at, whether its files are those of the commit, and how to get to another one."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from densitywatch.errors import DensitywatchError

MADE = (":(exclude)dvc.lock", ":(exclude)metrics", ":(exclude)data")
"""What a run itself writes into files that git tracks. A worker gets the accepted images in data/prepared."""


class GitFailed(DensitywatchError):
    """A checkout is not at the commit that is asked for and cannot go there, or git ended with an error."""


def git(root: Path, *arguments: str) -> str:
    """What git prints in `root`. Raises GitFailed with its last line."""
    done = _try(root, *arguments)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise GitFailed(f"git {arguments[0]} in {root}: {said}")
    return done.stdout


def commit_of(root: Path) -> str:
    """The commit of a checkout. Raises GitFailed where there is none."""
    return git(root, "rev-parse", "HEAD").strip()


def changed_files(root: Path) -> list[str]:
    """Tracked files that differ from the commit and source files that git does not track, without what a run writes."""
    listed = git(root, "status", "--porcelain", "--untracked-files=all", "--", ".", *MADE).splitlines()
    return [line[3:] for line in listed if not line.startswith("?? ") or line.startswith("?? src/")]


def go_to(root: Path, commit: str) -> None:
    """Bring a clone to a commit, which is fetched from its remotes if need be; what runs have written is overwritten.

    Raises GitFailed, with the clone as it was, when files in it were changed or no remote has the commit.
    """
    if not re.fullmatch(r"[0-9a-f]{40,64}", commit):
        raise GitFailed(f"{commit[:80]!r} is not a commit; give its 40 digits")
    changed = changed_files(root)
    if changed:
        raise GitFailed(f"the worker's clone {root} has changes in {_some(changed)}; commit them or take them back")
    if commit_of(root) == commit:
        return
    for remote in git(root, "remote").split():
        if _has(root, commit):
            break
        _try(root, "fetch", "--quiet", remote, commit)
    if not _has(root, commit):
        raise GitFailed(
            f"the worker's clone {root} is at {commit_of(root)[:10]}, and none of its git remotes has {commit[:10]};"
            " push that commit to one of them"
        )
    git(root, "checkout", "--quiet", "--force", "--detach", commit)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def check_committed(root: Path) -> None:
    """Raises GitFailed when another machine, at this checkout's commit, would have other files."""
    changed = changed_files(root)
    if changed:
        raise GitFailed(f"a worker trains what is committed, and {_some(changed)} is not; commit it first")


def _has(root: Path, commit: str) -> bool:
    return _try(root, "cat-file", "-e", f"{commit}^{{commit}}").returncode == 0


def _try(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603
        ["git", "-c", "core.quotepath=off", *arguments],  # noqa: S607
        cwd=root,
        env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},  # one that asks for a password would wait for ever
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
