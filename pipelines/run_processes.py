"""The processes of a run. All inherit its mark, so that the run itself, its watch or the next run can end them.

As a program, `run_processes.py MARK` is the watch: it waits until the run that started it is gone, even by a kill, and
ends what is left of it. The mark is an environment variable: it passes through DVC and its shell to the stage, where an
open file or a parent's number would not, and it does not depend on the thread that started the stage.
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
BOOT = Path("/proc/sys/kernel/random/boot_id")
"""Another text after each start of the machine; ticks begin anew then."""
GRACE = 4.0
"""Seconds between asking a process to end and killing it; a stage writes its checkpoint in this time."""


def new_mark(root: Path) -> str:
    """A mark for this run: the number of this process, when it started, and the project's folder."""
    own = psutil.Process()
    return f"{own.pid} {start_of(own)} {root.resolve()}"


def start_of(process: psutil.Process) -> str:
    """When a process started: its clock tick since the boot, and which boot. It stays the same when the clock is set.

    Without /proc it is a time in seconds since 1970.
    """
    try:
        said = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return str(process.create_time())  # or psutil's error: gone, or another user's
    # the second field is the name, in parentheses, and may hold blanks and parentheses; this is the 22nd
    tick = said.rpartition(")")[2].split()[19]
    boot = ""
    with suppress(OSError):
        boot = BOOT.read_text(encoding="ascii").strip()
    return f"{tick}@{boot}"


def process_of(number: int, start: str) -> psutil.Process | None:
    """The process that has this number and started then; None when it is gone, even if another has its number by now.

    start: what `start_of` returned, or the time that earlier versions noted. Raises ValueError when it is neither.
    """
    with suppress(psutil.Error):
        process = psutil.Process(number)
        # a time moves a little when the clock is set a little
        same = start_of(process) == start if "@" in start else abs(process.create_time() - float(start)) < 2
        if same and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def of_run(mark: str) -> list[psutil.Process]:
    """All processes that the run with this mark has started, directly or not."""
    return [process for process, found in marked() if found == mark]


def left_behind(root: Path) -> list[psutil.Process]:
    """Processes whose run, in this project, is gone."""
    found = []
    for process, mark in marked():
        number, start, folder = mark.split(" ", 2)
        if folder == str(root.resolve()) and process_of(int(number), start) is None:
            found.append(process)
    return found


def end(find: Callable[[], list[psutil.Process]], seconds: float = GRACE) -> bool:
    """Ask the processes that `find` returns to end, kill those left after `seconds`; return whether none is left.

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
    """Start the watch, which outlives this process by some seconds; kill it when the run has ended normally."""
    # -P: no file next to this one can hide a module of the standard library
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-P", __file__, mark],
        env={name: value for name, value in os.environ.items() if name != MARK},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def marked() -> Iterator[tuple[psutil.Process, str]]:
    """Every process that a run of any checkout has started, and the mark of that run."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # another user's, or gone meanwhile
            mark = process.environ().get(MARK)
            if mark and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                yield process, mark


def _is_dvc(process: psutil.Process) -> bool:
    return process.cmdline()[1:3] == ["-m", "dvc"]


if __name__ == "__main__":
    sys.stdin.buffer.read()  # returns when no process holds the other end
    end(lambda: of_run(sys.argv[1]))
