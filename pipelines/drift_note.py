"""What is remembered of the drift alarm that stands. Imports no Prefect.

<inbox.results>/retrain-asked.json    the alarm, the batches under it, who was told, and which retraining was asked for
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from densitywatch.batches.results_folder import BatchName
from densitywatch.errors import DataError
from densitywatch.files import read_back, write_whole
from densitywatch.params import Params

FILE = "retrain-asked.json"
MOST = 64 << 20
AHEAD = 600.0
"""Seconds that a noted time may be ahead of now: it may have been noted while the other process waited for the file."""


class Alarm(BaseModel):
    """A drift alarm that stands."""

    stream: str
    batch: str
    """The batch that raised it."""
    since: str
    """The batch that the change most likely began with."""
    moved: str
    evidence: float
    batches: list[BatchName]
    """Those under the alarm so far, from `since` on."""
    seen: str | None
    """inbox.drift_seen when it was raised: another value says that a person has seen it."""
    asked: str | None = None
    """What a retraining was asked for with, see drift_loop.py; None: it was not asked for yet."""
    asked_at: float | None = None
    """When that was, in seconds since 1970."""
    learnt: str | None = None
    """`asked` when a retraining began that ended well."""
    told: bool = False
    """Whether the server has taken the event of the alarm."""


class Asked(BaseModel):
    """The file."""

    format: Literal[1] = 1
    last: float | None = None
    """When a retraining that had images to learn from was asked for, in seconds since 1970."""
    alarm: Alarm | None = None
    ended: float | None = None
    """When the last alarm ended because another detector came on watch, in seconds since 1970."""


def standing_alarm(params: Params, root: Path) -> Alarm | None:
    """The alarm that stands, None where there is none."""
    results = root / params.inbox.results
    if not (results / FILE).exists():
        return None
    with held(results) as known:
        return known.alarm if known.alarm and stands(known.alarm, params) else None


def stands(alarm: Alarm, params: Params) -> bool:
    """Whether nobody has seen the alarm yet, and drift is tested for at all."""
    return params.inbox.drift_alarm is not None and alarm.seen == params.inbox.drift_seen


def believed(noted: float | None, now: float) -> float | None:
    """A noted time; None where it is of the future: the clock was wrong then, and it might count for years."""
    return None if noted is None or noted > now + AHEAD else noted


def end_alarm(params: Params, root: Path) -> None:
    """Forget the alarm: another detector is on watch, and its stream starts anew."""
    results = root / params.inbox.results
    if (results / FILE).exists():
        with held(results) as known:
            known.alarm, known.ended = None, time.time()


def note_learnt(alarm: Alarm | None, params: Params, root: Path) -> None:
    """Note that a retraining ended well, at whose begin `alarm` stood: for the same, none is asked for again."""
    if alarm is None:
        return
    with held(root / params.inbox.results) as known:
        if known.alarm is not None and (known.alarm.stream, known.alarm.batch) == (alarm.stream, alarm.batch):
            known.alarm.learnt = alarm.asked


@contextmanager
def held(results: Path) -> Iterator[Asked]:
    """The file under a lock; what the block changes is written. A damaged file is put aside."""
    results.mkdir(parents=True, exist_ok=True)
    file = results / FILE
    with (results / f".{FILE}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            known = Asked.model_validate(read_back(file, Asked, MOST))
        except FileNotFoundError:
            known = Asked()
        except DataError as error:
            if isinstance(error.__context__, OSError):  # a disk that does not answer is no damage
                raise
            file.replace(file.with_suffix(".damaged"))
            known = Asked(last=time.time())  # when it was asked for last is lost: no storm for that
        before = known.model_dump()
        yield known
        if known.model_dump() != before:
            write_whole(file, json.dumps(known.model_dump(), indent=1, ensure_ascii=False) + "\n")
