"""What a whole run counts: for each door how many inputs were tried, and what came of them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.faults.hostile.attempt import Door
from tests.faults.hostile.worker import start
from tests.faults.tally import processor

TABLE, FIGURES = Path("var") / "hostile.md", Path("var") / "hostile.json"
TO_GET_READY = 600.0
"""Seconds that a door may take before its first case: imports, a small training, a batch."""
GRACE = 120.0
"""Seconds beyond a door's limit after which a process that says nothing is ended from outside."""
BAD = ("crashed", "escaped", "hung")


@dataclass
class Count:
    """One door's row."""

    door: str
    tried: int = 0
    taken: int = 0
    refused: int = 0
    crashed: int = 0
    escaped: int = 0
    hung: int = 0
    seconds: float = 0.0
    peak: int = 0
    """Most memory of the process, bytes."""
    found: list[str] = field(default_factory=list)
    """What went wrong, in the words of the error."""


def count(door: Door, folder: Path, *, cases: int, seed: int) -> Count:
    """Try `cases` cases at a door, in a process of its own. One that dies or hangs is counted, and another goes on.

    `folder`: where the processes work, and where a case that went wrong is kept.
    """
    counted, done, began = Count(door.name), 0, time.monotonic()
    while done < cases:
        place = folder / f"from-{done}"
        case, log = place.with_suffix(".case"), place.with_suffix(".log")
        process, said_by = start(door.name, cases - done, seed + done, place)
        try:
            for said in _answers(said_by, TO_GET_READY, door.seconds + GRACE):
                if "peak" in said:
                    counted.peak = max(counted.peak, said["peak"])
                    done = cases  # hypothesis may have found no more different cases
                    break
                done += 1
                _add(counted, said["outcome"], said["inputs"], said["why"])
            else:
                process.join(10)
                assert case.exists(), f"{door.name} did not get ready: {log.read_text()[-3000:]}"
                done += 1
                _add(counted, "crashed", 1, f"{case}: the process ended with {process.exitcode}")
        except TimeoutError:
            assert case.exists(), f"{door.name} did not get ready: {log.read_text()[-3000:]}"
            done += 1
            _add(counted, "hung", 1, f"{case}: no answer")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # type: ignore[arg-type]  # it has been started
            process.join()
            said_by.close()
    counted.seconds = round(time.monotonic() - began, 1)
    return counted


def _add(counted: Count, outcome: str, inputs: int, why: str) -> None:
    """One case of so many inputs. Of a case that went wrong one input is at fault; the others count as refused."""
    counted.tried += inputs
    bad = outcome in BAD
    setattr(counted, outcome, getattr(counted, outcome) + (1 if bad else inputs))
    if bad:
        counted.refused += inputs - 1
        counted.found.append(why)


def _answers(said_by: Connection, first: float, then: float) -> Iterator[dict[str, Any]]:
    """What a process says. Raises TimeoutError when the first word, or the next one, does not come in time."""
    limit = first
    while said_by.poll(limit):
        try:
            yield json.loads(said_by.recv_bytes())
        except (EOFError, OSError):
            return
        limit = then
    raise TimeoutError


def table(counts: Sequence[Count]) -> str:
    """The rows in Markdown."""
    rows = [
        "| door | tried | taken | refused | crashed | escaped | hung | memory, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in counts:
        figures = (one.tried, one.taken, one.refused, one.crashed, one.escaped, one.hung, one.peak >> 20)
        rows.append(f"| {one.door} | {' | '.join(f'{figure:,}' for figure in figures)} |")
    names = ("tried", "taken", "refused", *BAD)
    sums = [f"**{sum(getattr(one, name) for one in counts):,}**" for name in names]
    rows.append(f"| **all** | {' | '.join(sums)} | {max((one.peak for one in counts), default=0) >> 20:,} |")
    return "\n".join(rows) + "\n"


def write(counts: Sequence[Count], root: Path) -> str:
    """Write the table and its figures under `root`/var; returns the table with what it was measured by."""
    seconds = sum(one.seconds for one in counts)
    measured = f"`make faults` on {processor()}, {os.cpu_count()} cores, {seconds / 60:.0f} minutes for these"
    said = f"{measured}\n\n{table(counts)}"
    (root / TABLE).parent.mkdir(exist_ok=True)
    (root / TABLE).write_text(said, encoding="utf-8")
    rows = [asdict(one) for one in counts]
    (root / FIGURES).write_text(json.dumps({"seconds": round(seconds, 1), "doors": rows}, indent=1) + "\n")
    return said
