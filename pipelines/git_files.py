"""Git as a child process: which commit a reference names, and what of a checkout is not committed."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from densitywatch.errors import DensitywatchError
from densitywatch.text import as_text

LONGEST = 250
RESULTS = re.compile(r"dvc\.lock|data/accepted\.dvc|metrics/[A-Za-z0-9_][\w.-]*\.json")
"""What a run changes among the files that git keeps."""
FETCH_SECONDS = 120.0
OTHERS = {
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_WORK_TREE",
}
"""Variables that name another repository; a hook of git sets them."""


def git(
    root: Path, *arguments: str, given: str | None = None, seconds: float | None = 60.0, index: Path | None = None
) -> str:
    """What a git command in `root` prints. `given` goes to its standard input; it never asks for a password.

    index: a file in place of the repository's own index.

    Raises DensitywatchError with git's last line.
    """
    kept = {name: value for name, value in os.environ.items() if name not in OTHERS}
    kept |= {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"} | ({} if index is None else {"GIT_INDEX_FILE": str(index)})
    try:
        done = subprocess.run(  # noqa: S603
            ["git", "-C", str(root), *arguments],  # noqa: S607 git is found on the path, as DVC finds it
            env=kept,
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=seconds,
            check=False,
        )
    except FileNotFoundError:
        raise DensitywatchError("git is not installed; install it, or run without a commit") from None
    except subprocess.TimeoutExpired:
        raise DensitywatchError(f"git {arguments[0]}: no answer within {seconds:.0f} s") from None
    if done.returncode != 0:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = as_text(said[-1][:300]) if said else "it failed without a message"
        verb = next((word for word in arguments if word != "-c" and "=" not in word), "")
        raise DensitywatchError(f"git {verb}: {reason}")
    return done.stdout


def check_ref(ref: str) -> None:
    """Refuse what is no name of a commit, branch or tag; one with `-` in front would be an option of git.

    Raises DensitywatchError.
    """
    plain = re.fullmatch(r"[A-Za-z0-9_][\w./+@~^-]*", ref, re.ASCII)
    if plain is None or len(ref) > LONGEST or ".." in ref:
        raise DensitywatchError(
            f"'{as_text(ref[:60])}' is no git reference; give a commit, a branch or a tag, such as main or 1a2b3c4"
        )


def commit_of(root: Path, ref: str) -> str | None:
    """The full name of the commit that `ref` names in `root`; None where this repository does not know it."""
    check_ref(ref)
    try:
        return git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}").strip()
    except DensitywatchError:
        if not is_repository(root):
            raise DensitywatchError(f"{root} is no git repository, so it holds no commit {ref}") from None
        return None


def is_repository(root: Path) -> bool:
    """Whether `root` is the top folder of a git repository with at least one commit."""
    try:
        top = git(root, "rev-parse", "--show-toplevel", "--verify", "HEAD").splitlines()[0]
    except DensitywatchError:
        return False
    return Path(top).resolve() == root.resolve()


def changed(root: Path) -> list[str]:
    """The paths that differ from the last commit, new ones that git does not ignore among them; sorted."""
    said = git(root, "status", "--porcelain=v1", "-z", "--untracked-files=all", "--no-renames")
    return sorted(entry[3:] for entry in said.split("\0") if entry)


def uncommitted(root: Path) -> list[str]:
    """What of code, params and graph is not committed; what a run changes (RESULTS) does not count."""
    return [path for path in changed(root) if not RESULTS.fullmatch(path)]


def unkept_results(root: Path) -> list[str]:
    """What a run changed among the files that git keeps: dvc.lock, metrics/ and the version of accepted images."""
    return [path for path in changed(root) if RESULTS.fullmatch(path)]
