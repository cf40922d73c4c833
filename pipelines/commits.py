"""Whether a checkout's files are those of its commit, and how a worker's clone gets to another one."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from densitywatch.errors import DensitywatchError
from pipelines.git_files import FETCH_SECONDS, git

MADE = (":(exclude)dvc.lock", ":(exclude)metrics", ":(exclude)data")
"""What a run itself writes into files that git tracks. A worker gets the accepted images in data/prepared."""


def head(root: Path) -> str:
    """The commit of a checkout. Raises DensitywatchError where there is none."""
    return git(root, "rev-parse", "HEAD").strip()


def changed_files(root: Path) -> list[str]:
    """Tracked files that differ from the commit and source files that git does not track, without what a run writes."""
    said = git(root, "status", "--porcelain=v1", "-z", "--untracked-files=all", "--no-renames", "--", ".", *MADE)
    listed = [entry for entry in said.split("\0") if entry]
    return [entry[3:] for entry in listed if not entry.startswith("?? ") or entry.startswith("?? src/")]


def go_to(root: Path, commit: str) -> None:
    """Bring a clone to a commit, which is fetched from its remotes if need be; what runs have written is overwritten.

    Raises DensitywatchError, with the clone as it was, when files in it were changed or no remote has the commit.
    """
    if not re.fullmatch(r"[0-9a-f]{40,64}", commit):
        raise DensitywatchError(f"{commit[:80]!r} is not a commit; give its 40 digits")
    changed = changed_files(root)
    if changed:
        raise DensitywatchError(
            f"the worker's clone {root} has changes in {_some(changed)}; commit them or take them back"
        )
    if head(root) == commit:
        return
    for remote in git(root, "remote").split():
        if _has(root, commit):
            break
        with suppress(DensitywatchError):  # another remote may have it
            git(root, "fetch", "--quiet", remote, commit, seconds=FETCH_SECONDS)
    if not _has(root, commit):
        raise DensitywatchError(
            f"the worker's clone {root} is at {head(root)[:10]}, and none of its git remotes has {commit[:10]};"
            " push that commit to one of them"
        )
    git(root, "checkout", "--quiet", "--force", "--detach", commit, seconds=None)


def check_committed(root: Path) -> None:
    """Raises DensitywatchError when another machine, at this checkout's commit, would have other files."""
    changed = changed_files(root)
    if changed:
        raise DensitywatchError(f"a worker trains what is committed, and {_some(changed)} is not; commit it first")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _has(root: Path, commit: str) -> bool:
    try:
        git(root, "cat-file", "-e", f"{commit}^{{commit}}")
    except DensitywatchError:
        return False
    return True
