"""`python -P dvc_restore.py STAGE`: restore a stage from the remote's run cache, and never run it.

It is `dvc repro --single-item --pull STAGE` with one difference: where DVC would run the stage's command it ends with
an error. It imports nothing of this project, so that it can be run by its path in any folder.
"""

from __future__ import annotations

import sys

NOT_THERE = "the DVC remote has no result for the present inputs of this stage"


def main(stage: str) -> int:
    """Return DVC's exit code: not 0 where the remote has no such result."""
    import dvc.stage.run
    from dvc import cli
    from dvc.exceptions import DvcException

    def refuse(*_: object, **__: object) -> None:
        raise DvcException(NOT_THERE)

    dvc.stage.run.cmd_run = refuse
    return int(cli.main(["--wait-for-lock", "repro", "--single-item", "--pull", stage]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
