"""How long each step of a run took, and the share of training and evaluating."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from densitywatch.files import write_whole

WORK = ("train", "evaluate")


@dataclass
class Step:
    """One step of a run; times are those of `time.time`."""

    name: str
    outcome: str
    started: float
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.started

    @property
    def is_work(self) -> bool:
        """Whether the step trained or evaluated; everything else counts as overhead."""
        return self.name.partition("@")[0].partition("_")[0] in WORK and self.outcome == "ran"


@contextmanager
def timed(name: str) -> Iterator[Step]:
    """A step that ends with the block; the block sets its outcome."""
    step = Step(name, "done", time.time(), 0.0)
    yield step
    step.ended = time.time()


def work_seconds(steps: list[Step]) -> float:
    """Wall seconds in which at least one training or evaluation ran; two at once count once."""
    total, reached = 0.0, float("-inf")
    for step in sorted((step for step in steps if step.is_work), key=lambda step: step.started):
        total += max(0.0, step.ended - max(step.started, reached))
        reached = max(reached, step.ended)
    return total


def table(steps: list[Step], started: float, ended: float) -> str:
    """The run as lines of text: each step with its outcome and seconds, then the shares of the wall time."""
    wall, work = ended - started, work_seconds(steps)
    width = max(len(step.name) for step in steps)
    lines = [f"{step.name:<{width}}  {step.outcome:<10}{step.seconds:>9.1f} s" for step in steps]
    rest = wall - work
    share = 100 * rest / wall if wall else 0.0
    lines += [
        "-" * (width + 23),
        f"{'wall time':<{width}}  {'':<10}{wall:>9.1f} s",
        f"{'train, evaluate':<{width}}  {'':<10}{work:>9.1f} s   {100 - share:.1f} %",
        f"{'everything else':<{width}}  {'':<10}{rest:>9.1f} s   {share:.1f} %",
    ]
    return "\n".join(lines)


def save(steps: list[Step], started: float, ended: float, path: Path) -> None:
    """The same as JSON: wall and work seconds, and the steps with seconds since the start."""
    rows = [
        {**asdict(step), "started": round(step.started - started, 3), "ended": round(step.ended - started, 3)}
        for step in steps
    ]
    run = {"wall_seconds": ended - started, "work_seconds": work_seconds(steps), "steps": rows}
    write_whole(path, json.dumps(run, indent=1) + "\n")
