"""One door tried in a process of its own: `python -m tests.faults.hostile.worker DOOR CASES SEED FOLDER`.

It prints a line of JSON for each case; where the lines end without the last one, the case that is in FOLDER.case killed
it.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import sys
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.faults.hostile.attempt import Tried, attempt, lay
from tests.faults.hostile.doors import find_door

MEMORY = 3 << 30
"""Bytes of address space beyond what the process has when its door is ready."""


def main(name: str, cases: int, number: int, folder: Path) -> None:
    inside = lay(folder)
    (inside / "tmp").mkdir()
    os.chdir(inside)
    os.environ["TMPDIR"] = tempfile.tempdir = str(inside / "tmp")
    door = find_door(name)
    enter = door.opened(inside)
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no line of ours
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
            tried.why = f"{kept.name}: {tried.why}"
        print(json.dumps({"outcome": tried.outcome, "why": tried.why, "inputs": door.inputs(case)}), file=lines)

    every()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    print(json.dumps({"peak": peak}), file=lines)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]).resolve())
