"""`python -m pipelines compare BASE`: the figures and params that differ between two commits, as Markdown."""

from __future__ import annotations

import sys
from pathlib import Path

from densitywatch.errors import DensitywatchError
from pipelines import dvc_commands, git_files


def page(root: Path, base: str) -> str:
    """What `dvc metrics diff` and `dvc params diff` say between `base` and the commit that is checked out.

    Raises DensitywatchError when git does not know `base`.
    """
    commit = git_files.commit_of(root, base)
    if commit is None:
        raise DensitywatchError(f"git does not know '{base}' in {root}; fetch it first")
    parts = []
    for title, command in (("Metrics", "metrics"), ("Params", "params")):
        said = dvc_commands.run_dvc(root, command, "diff", "--md", commit, "HEAD")
        parts += [f"## {title}", "", said or "No difference.", ""]
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m pipelines compare BASE", file=sys.stderr)
        return 2
    try:
        print(page(Path.cwd(), arguments[0]))
    except DensitywatchError as error:
        print(f"pipelines: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
