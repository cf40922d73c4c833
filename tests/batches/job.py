"""A scoring job in a process of its own, for tests that kill it."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from densitywatch.batches.score_batch import score_source
from densitywatch.params import Params
from tests.detector.standin import Brightness

KILLED = 9
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "open"}


def context() -> ForkServerContext:
    """Processes that start in milliseconds, with everything imported."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload([__name__])
    return made


def run(
    params: Params, source: Path, out: Path, seconds: float = 0.0, die_at: int | None = None, log: Any = None
) -> None:
    """Score; die at the `die_at`-th change to the results' surroundings, or send the number of changes to `log`."""
    sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    changes = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        if event in CHANGES and str(out.parent) in str(arguments[0]):
            if event == "open" and not (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")):
                return
            changes += 1
            if changes == die_at:
                os._exit(KILLED)

    sys.addaudithook(watch)
    score_source(str(source), params, source.parent, out, Brightness(seconds=seconds))
    if log is not None:
        log.send(changes)


def start(params: Params, source: Path, out: Path, **options: Any) -> ForkServerProcess:
    process = context().Process(target=run, args=(params, source, out), kwargs=options)
    process.start()
    return process
