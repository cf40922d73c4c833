"""The processes of a run: all that it starts inherits its mark, so the run itself, its watch or the next run ends them.

As a program, `run_processes.py MARK` is the watch: it waits until the run that started it is gone, however that came,
and ends what is left of it. A mark goes through DVC and its shell to the stage, where an open file or a parent's number
would not, and does not depend on the thread that started the stage.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil

MARK = "DENSITYWATCH_RUN"
GRACE = 4.0
"""Seconds between being asked to end and being killed; a stage writes its checkpoint in them."""


def new_mark(root: Path) -> str:
    """This process and the project it runs: its number, when it started, and the folder."""
    own = psutil.Process()
    return f"{own.pid} {own.create_time()} {root.resolve()}"


def of_run(mark: str) -> list[psutil.Process]:
    """The processes that the run with this mark has started, and those that they have."""
    return [process for process, found in _marked() if found == mark]


def left_behind(root: Path) -> list[psutil.Process]:
    """The processes of this project's runs that are gone themselves."""
    found = []
    for process, mark in _marked():
        number, created, folder = mark.split(" ", 2)
        if folder == str(root.resolve()) and not _alive(int(number), float(created)):
            found.append(process)
    return found


def end(find: Callable[[], list[psutil.Process]], seconds: float = GRACE) -> bool:
    """Ask what `find` finds to end, kill what is there after `seconds`; whether nothing is left.

    DVC is not asked: it ends when its stage does, and gives its locks back.
    """
    until, asked = time.monotonic() + seconds, set[int]()
    while found := find():
        now = time.monotonic()
        if now > until + 1:
            return False
        for process in found:
            with suppress(psutil.Error):
                if now > until:
                    process.kill()
                elif process.pid not in asked and not _is_dvc(process):
                    asked.add(process.pid)
                    process.terminate()
        time.sleep(0.05)
    return True


def start_watch(mark: str) -> subprocess.Popen[bytes]:
    """A process that outlives this one, if need be by a few seconds; kill it when the run has ended by itself."""
    # -P: nothing beside this file can stand in for a module of the library
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-P", __file__, mark],
        env={name: value for name, value in os.environ.items() if name != MARK},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _marked() -> Iterator[tuple[psutil.Process, str]]:
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # another user's, or gone meanwhile
            mark = process.environ().get(MARK)
            if mark and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                yield process, mark


def _alive(number: int, created: float) -> bool:
    with suppress(psutil.Error):
        process = psutil.Process(number)
        # a clock that is set while they run moves these times by a little
        return abs(process.create_time() - created) < 2 and process.status() != psutil.STATUS_ZOMBIE
    return False


def _is_dvc(process: psutil.Process) -> bool:
    return process.cmdline()[1:3] == ["-m", "dvc"]


if __name__ == "__main__":
    sys.stdin.buffer.read()  # comes back when nobody holds the other end any more
    end(lambda: of_run(sys.argv[1]))
