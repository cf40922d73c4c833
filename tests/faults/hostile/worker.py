"""One door tried in a process of its own, which is forked from one that has imported everything: `start`."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import resource
import sys
import tempfile
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.faults.hostile.attempt import Tried, attempt, lay
from tests.faults.hostile.doors import all_doors, find_door

MEMORY = 3 << 30
"""Bytes of address space beyond what the process has when its door is ready."""
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])
all_doors()


def start(name: str, cases: int, number: int, folder: Path) -> tuple[BaseProcess, Connection]:
    """The process and what it says: a text of JSON for each case, and at the end one with its peak of memory.

    Where the texts end without the last one, the case that is in FOLDER.case killed it.
    """
    ours, theirs = _context.Pipe(duplex=False)
    process = _context.Process(target=main, args=(name, cases, number, folder.resolve(), theirs))
    process.start()
    theirs.close()
    return process, ours


def main(name: str, cases: int, number: int, folder: Path, to_parent: Connection) -> None:
    os.setsid()
    inside = lay(folder)
    (inside / "tmp").mkdir()
    os.chdir(inside)
    os.environ["TMPDIR"] = tempfile.tempdir = str(inside / "tmp")
    sys.dont_write_bytecode = True
    log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)  # what libraries print
    os.dup2(log, 2)
    door = find_door(name)
    enter = door.opened(inside)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    now = folder.with_suffix(".case")
    found: list[Tried] = []

    @seed(number)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(door.cases)
    def every(case: object) -> None:
        now.write_bytes(pickle.dumps(case))
        tried = attempt(door, enter, case, folder)
        found.append(tried)
        if tried.outcome not in ("taken", "refused"):
            kept = folder.with_suffix(f".{len(found)}.case")
            kept.write_bytes(now.read_bytes())
            tried.why = f"{kept}: {tried.why}"
        said = {"outcome": tried.outcome, "why": tried.why, "inputs": door.inputs(case)}
        to_parent.send_bytes(json.dumps(said).encode())

    every()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    to_parent.send_bytes(json.dumps({"peak": peak}).encode())
