"""The lock of a checkout: one run at a time may change what DVC tracks."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from densitywatch.errors import DensitywatchError

AGAIN = 0.1
"""Seconds until the lock is tried once more: `holder`, which only looks, shares it for a moment."""

_HELD: set[Path] = set()


@contextmanager
def one_run_at_a_time(root: Path, *, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the project's run lock; it ends with the process, even a killed one. A second call inside has no effect.

    say: wait for the lock instead of raising; called once with the reason.

    Raises DensitywatchError when another run of this checkout holds it.
    """
    path = root.resolve() / "var" / "run.lock"
    if path in _HELD:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        locked = _locked(file)
        if not locked:
            time.sleep(AGAIN)
            locked = _locked(file)
        if not locked:
            file.seek(0)
            if say is None:
                raise DensitywatchError(going_on(_process(file), root))
            say(f"{_who(_process(file), root)}; waiting for it to end")
            while not _locked(file):
                time.sleep(1)
        file.truncate(0)
        print(os.getpid(), file=file, flush=True)
        _HELD.add(path)
        try:
            yield
        finally:
            _HELD.discard(path)


def holder(root: Path) -> int | None:
    """The process that holds the lock; 0 where it cannot be told which, None where none does."""
    try:
        with (root.resolve() / "var" / "run.lock").open("r") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _process(file)
    except FileNotFoundError:
        pass
    return None


def going_on(process: int, root: Path) -> str:
    """Why a second run does not start, as a sentence."""
    return f"{_who(process, root)}; wait for it to end, or stop it"


def _who(process: int, root: Path) -> str:
    return f"another run (process {process or 'unknown'}) is going on in {root.resolve()}"


def _process(file: TextIO) -> int:
    said = file.read().strip()
    return int(said) if said.isdecimal() else 0


def _locked(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
