"""What the scheduled job found the last time it looked at the inbox: kept for the status and the metrics.

<inbox.results>/.look.json    when it looked, what waits, what could not be scored, when all last went well
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from densitywatch.batches.batch_table import read_table
from densitywatch.batches.inbox import Batch
from densitywatch.batches.metrics import write_metrics
from densitywatch.batches.over_time import write_page
from densitywatch.batches.results_folder import OVER_TIME, Count
from densitywatch.errors import DataError
from densitywatch.files import read_back, write_whole
from densitywatch.params import Params
from densitywatch.text import as_text

LOOK = ".look.json"
FAILURES = 20
"""Sentences about batches that failed, at most."""

Time = Annotated[FiniteFloat, Field(ge=0, le=1e11)]


class Look(BaseModel):
    """The last look at the inbox. Times are in seconds since 1970."""

    model_config = ConfigDict(frozen=True)

    time: Time
    seconds: Annotated[FiniteFloat, Field(ge=0)]
    """How long the look and the scoring took."""
    scored: Count
    """Batches that it scored."""
    waiting: Count
    """Batches that are not scored after it."""
    oldest: Time | None
    """When the files of the oldest of these were written; None where nothing waits or nothing is known."""
    failed: Count
    failures: list[Annotated[str, Field(max_length=1000)]]
    last_success: Time | None
    """When a look last ended without a failure."""


def note_look(
    params: Params,
    root: Path,
    *,
    started: float,
    ended: float,
    scored: int,
    left: Sequence[Batch],
    failures: Sequence[str],
) -> Look:
    """Keep a look at the inbox in the results folder, and write `inbox.metrics_file` where it is set; returns the look.

    `left`: the batches that are not scored. `failures`: a sentence for each batch that failed or is not as expected.

    Raises DataError or OSError where it cannot be written.
    """
    results = root / params.inbox.results
    results.mkdir(parents=True, exist_ok=True)
    before = read_look(results)
    look = Look(
        time=ended,
        seconds=max(0.0, ended - started),
        scored=scored,
        waiting=len(left),
        oldest=oldest(left),
        failed=len(failures),
        failures=[as_text(text)[:1000] for text in failures[:FAILURES]],
        last_success=ended if not failures else before.last_success if before is not None else None,
    )
    write_whole(results / LOOK, json.dumps(look.model_dump(), ensure_ascii=False) + "\n", new_folder=False)
    if not (results / OVER_TIME).exists():  # results of an older version, and no batch since
        write_page(results, params.inbox.drift_alarm)
    if params.inbox.metrics_file is not None:
        write_metrics(
            root / params.inbox.metrics_file, read_table(results), look.model_dump(), params.inbox.drift_alarm
        )
    return look


def read_look(results: Path) -> Look | None:
    """The last look; None where there is none, or a damaged one."""
    try:
        found: dict[str, Any] = read_back(results / LOOK, Look)
    except (FileNotFoundError, DataError):
        return None
    return Look.model_validate(found)


def oldest(batches: Sequence[Batch]) -> float | None:
    """When the files of the batch that waits longest were written."""
    return min((batch.since for batch in batches if batch.since is not None), default=None)
