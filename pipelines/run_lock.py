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
        if not _locked(file):
            file.seek(0)
            who = f"another run (process {file.read().strip() or 'unknown'}) is going on in {root.resolve()}"
            if say is None:
                raise DensitywatchError(f"{who}; wait for it to end, or stop it")
            say(f"{who}; waiting for it to end")
            while not _locked(file):
                time.sleep(1)
        file.truncate(0)
        print(os.getpid(), file=file, flush=True)
        _HELD.add(path)
        try:
            yield
        finally:
            _HELD.discard(path)


def _locked(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
