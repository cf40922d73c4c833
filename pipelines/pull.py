"""`python -m pipelines pull`: `dvc pull`, and one clear sentence where the DVC remote cannot hold anything yet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from densitywatch.errors import DensitywatchError
from densitywatch.tracking.store import plain
from pipelines import dvc_commands

TEAM = ".venv/bin/dvc remote add --local --default team s3://bucket/densitywatch"


def check(root: Path) -> None:
    """Raise DensitywatchError when the default remote is missing, is empty, or needs a package that is not there."""
    remote = dvc_commands.default_remote(root)
    if remote is None:
        raise DensitywatchError(f"no DVC remote is set; name one that your team fills: {TEAM}")
    dvc_commands.check_remote(remote)
    if not dvc_commands.holds_something(remote):
        inside = " a folder of this checkout, which only runs here fill;" if _is_inside(remote, root) else ""
        raise DensitywatchError(
            f"the DVC remote {plain(remote)} holds nothing:{inside} `make run` makes everything, or name a remote that"
            f" your team fills: {TEAM}"
        )


def _is_inside(remote: str, root: Path) -> bool:
    return "://" not in remote and Path(remote).resolve().is_relative_to(root.resolve())


def main(arguments: list[str]) -> int:
    """Exit code 0: all that dvc.lock names is here; else DVC's, or 1 after one sentence."""
    if arguments:
        print("usage: python -m pipelines pull", file=sys.stderr)
        return 2
    try:
        check(Path.cwd())
    except DensitywatchError as error:
        print(f"pipelines: {error}", file=sys.stderr)
        return error.exit_code
    return subprocess.call([sys.executable, "-m", "dvc", "pull"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
