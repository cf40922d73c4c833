"""How far a training has come, in Prefect's page of the task: a bar that moves while the stage runs.

The stage says it in its own lines, `train vae: 300 of 1100` (densitywatch/progress.py), which are in the log as well.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from pipelines.prefect_text import leave_artifact

LINE = re.compile(r"train (\w+): (\d+) of (\d+)")
SECONDS = 15.0
"""Between two updates of the bar, at least."""


def with_bar(stage: str, say: Callable[[str], None], *, seconds: float = SECONDS) -> Callable[[str], None]:
    """A `say` for the lines of `stage`: it hands each line to `say` and keeps the bar, where the lines give one."""
    made: list[Any] = []
    moved = [float("-inf")]

    def told(line: str) -> None:
        say(line)
        found = LINE.search(line)
        if found is None or time.monotonic() - moved[0] < seconds:
            return
        done, steps = int(found[2]), int(found[3])
        moved[0] = time.monotonic()
        leave_artifact(lambda: _bar(made, stage, found[1], done, steps))

    return told


def _bar(made: list[Any], stage: str, model: str, done: int, steps: int) -> None:
    from prefect.artifacts import create_progress_artifact, update_progress_artifact

    share, words = 100.0 * min(done, steps) / max(1, steps), f"{model}: {done:,} of {steps:,} steps"
    if not made:
        key = re.sub(r"[^a-z0-9]+", "-", stage.lower()).strip("-")
        made.append(create_progress_artifact(progress=share, key=key, description=words))
    else:
        update_progress_artifact(made[0], progress=share, description=words)
