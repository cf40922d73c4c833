"""The drift test over the stream of batches of the inbox: what is remembered, and what a batch's summary says of it.

    <inbox.results>/drift-<detector>.json    what is kept of every batch that this detector scored, in order
    <inbox.results>/.drift.lock              held while that file changes

A batch counts once. What it said then is kept, so a batch that is scored again, or after a crash, says the same. A
detector of another version has a file of its own: the stream starts anew. `inbox.drift_seen` names the last batch of an
alarm that a person has seen: the stream starts anew after it.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from densitywatch.arrays import Floats
from densitywatch.batches.inbox import is_remote_batch
from densitywatch.batches.results_folder import BatchName
from densitywatch.data.inputs.source import is_local, local_path
from densitywatch.detector.stream_drift import HIGH, LOW, MEASURES, Look, follow, look
from densitywatch.errors import DataError
from densitywatch.files import read_back, write_whole
from densitywatch.params import Params
from densitywatch.progress import say
from densitywatch.text import as_text

OF_IMAGES = MEASURES[2:]
"""Columns of the scored chunks that the test reads next to score and p_value."""
NOT_LOOKED = (
    "drift looked at earlier files of this name and not at these, because it counts a batch once, by its name; give"
    " each batch its own name"
)
DIGITS = 10
MOST_STATE = 256 << 20
"""Bytes of a state file: more batches than a detector lives to see, at about 300 bytes a batch."""

Name = Annotated[str, Field(max_length=1000)]
Number = Annotated[int, Field(ge=0, le=2**53)]


class Kept(BaseModel):
    """What is kept of a batch, and what the stream showed when it came."""

    model_config = ConfigDict(frozen=True)

    name: BatchName
    content: Name
    images: Annotated[int, Field(ge=1, le=2**53)]
    beyond: Annotated[list[Number], Field(min_length=len(HIGH) + len(LOW), max_length=len(HIGH) + len(LOW))]
    """Images beyond each calibration score that the test looks at."""
    measures: Annotated[list[FiniteFloat | None], Field(min_length=len(MEASURES), max_length=len(MEASURES))]
    start: Number
    """The stream's first batch when this one came; numbers of batches count from 0."""
    evidence: Annotated[FiniteFloat, Field(ge=0)]
    alarm: Number | None
    since: Number | None
    moved: Name | None

    def look(self) -> Look:
        """What the test needs of it."""
        tie = int(hashlib.sha256(self.content.encode()).hexdigest()[:13], 16) / 16**13
        shares = tuple(count / self.images for count in self.beyond)
        return Look(self.images, shares, tuple(self.measures), tie)


class State(BaseModel):
    """A state file."""

    format: Literal[1] = 1
    detector: str
    batches: list[Kept]

    @model_validator(mode="after")
    def _names_batches_that_are_there(self) -> State:
        for place, kept in enumerate(self.batches):
            if any(number is not None and number > place for number in (kept.start, kept.alarm, kept.since)):
                raise ValueError(f"batch {place} names a later one")
        return self


@dataclass(frozen=True)
class Stream:
    """The stream that a batch belongs to."""

    results: Path
    detector: str
    """The digest of all that scores a batch."""
    calibration: Floats
    alarm: float
    """The share of normal streams that may ever have an alarm."""
    seen: str | None

    @property
    def name(self) -> str:
        """The stream's name in files and summaries."""
        return hashlib.sha256(self.detector.encode()).hexdigest()[:12]

    @property
    def file(self) -> Path:
        """Where the state is."""
        return _state_file(self.results, self.name)


def _state_file(results: Path, stream: str) -> Path:
    return results / f"drift-{stream}.json"


def stream_of(source: str, params: Params, root: Path, calibration: Floats, *, whole: bool) -> Stream | None:
    """The stream of the batch `source`, None where it belongs to none: not directly in the inbox, or not `whole`.

    A detector is known by the scores of its calibration images. Labels next to it change nothing that drift looks at.
    """
    level = params.inbox.drift_alarm
    if level is None or not whole or not _is_in_inbox(source, params.inbox.address, root):
        return None
    detector = hashlib.sha256(np.ascontiguousarray(calibration, dtype="<f8").tobytes()).hexdigest()
    return Stream(root / params.inbox.results, detector, calibration, level, params.inbox.drift_seen)


def _is_in_inbox(source: str, inbox: str, root: Path) -> bool:
    if is_local(source) != is_local(inbox):
        return False
    if not is_local(source):
        return is_remote_batch(source, inbox)
    return (root / local_path(source)).parent.resolve() == (root / local_path(inbox)).resolve()


def drift_of_batch(stream: Stream | None, name: str, content: str, work: Path) -> dict[str, Any]:
    """What the summary of a batch says of the stream; counts the batch where it is new.

    `name`: of its results folder. `content`: a digest of its files. `work`: the folder of its scored chunks. A batch
    is known by its name or its content, and says again what it said at first. Where a known name has other files than
    those that drift looked at, the summary says that it did not look at them, and so does a line. One in no stream, or
    without a single scored image, says nothing and does not count.
    """
    if stream is None:
        return {}
    stream.results.mkdir(parents=True, exist_ok=True)
    with (stream.results / ".drift.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = _read(stream)
        known = (place for place, kept in enumerate(state.batches) if content == kept.content or name == kept.name)
        place = next(known, None)
        if place is None:
            new = _looked_at(stream, state.batches, name, content, work)
            if new is None:
                return {}
            place = len(state.batches)
            state.batches.append(new)
            write_whole(stream.file, state.model_dump_json() + "\n")
    if content not in (kept.content for kept in state.batches):
        say(f"score: {as_text(name)}: {NOT_LOOKED}")
        return {"drift_stream": stream.name, **_in_summary(state.batches, place), "drift_looked": False}
    return {"drift_stream": stream.name, **_in_summary(state.batches, place)}


def batches_since(results: Path, stream: str, since: str) -> list[str]:
    """The names of a stream's batches from `since` on; only `since` where the state has no such batch.

    `stream`: `drift_stream` of a summary. Raises DataError when the state is damaged.
    """
    try:
        kept = State.model_validate(read_back(_state_file(results, stream), State, MOST_STATE)).batches
    except FileNotFoundError:
        return [since]
    names = [batch.name for batch in kept]
    return names[names.index(since) :] if since in names else [since]


def alarm_in_words(summary: Mapping[str, Any]) -> str | None:
    """The alarm of a batch's summary as a sentence that says what to do; None without an alarm."""
    if not summary.get("drift_alarm"):
        return None
    return (
        f"the stream has moved: alarm at batch {as_text(str(summary['drift_alarm_batch']))}, most likely since batch "
        f"{as_text(str(summary['drift_since']))} ({in_words(str(summary['drift_moved']))}); look at their reports, and "
        "retrain, or set inbox.drift_seen in params.yaml to the last batch that you have looked at: the test starts "
        "anew after it"
    )


def in_words(moved: str) -> str:
    """What moved most, for someone who has not read the test."""
    measure, _, way = moved.partition(" ")
    words = {
        "calibration": ("unlike the calibration images", "unlike the calibration images"),
        "surprise": (
            "images are more unusual than in earlier batches",
            "images are more usual than in earlier batches",
        ),
        "spread": ("more images at the ends of what is usual", "fewer images at the ends of what is usual"),
        "bits_per_dim": ("images hold more detail or noise", "images hold less detail or noise"),
        "brightness": ("images are brighter", "images are darker"),
        "sharpness": ("images are sharper", "images are less sharp"),
    }
    up, down = words.get(measure, (moved, moved))
    return down if way == "down" else up


def _read(stream: Stream) -> State:
    """The state, empty where there is none. A damaged file is named and put aside: the stream starts anew."""
    try:
        state = State.model_validate(read_back(stream.file, State, MOST_STATE))
    except FileNotFoundError:
        return State(detector=stream.detector, batches=[])
    except DataError as error:
        if isinstance(error.__context__, OSError):  # a disk that does not answer is no damage
            raise
        aside = stream.file.with_suffix(".damaged")
        stream.file.replace(aside)
        say(f"score: {as_text(str(error))}; put aside as {aside.name}, and the drift test starts anew")
        return State(detector=stream.detector, batches=[])
    return state


def _looked_at(stream: Stream, before: list[Kept], name: str, content: str, work: Path) -> Kept | None:
    columns = {key: _column(work, key) for key in ("score", "p_value", *OF_IMAGES)}
    scored = np.isfinite(columns["p_value"])
    if not scored.any():
        return None
    found = look(
        columns["score"][scored],
        columns["p_value"][scored],
        {key: columns[key][scored] for key in OF_IMAGES},
        stream.calibration,
        tie=0.0,  # made of the content when it is read back
    )
    seen = [place for place, kept in enumerate(before) if kept.name == stream.seen]
    start = seen[0] + 1 if seen else 0
    measures = [None if value is None else float(f"{value:.{DIGITS}g}") for value in found.measures]
    beyond = [round(share * found.images) for share in found.shares]
    new = Kept(
        name=name,
        content=content,
        images=found.images,
        beyond=beyond,
        measures=measures,
        start=start,
        evidence=0.0,
        alarm=None,
        since=None,
        moved=None,
    )
    finding = follow([kept.look() for kept in [*before[start:], new]], len(stream.calibration), stream.alarm)
    return new.model_copy(
        update={
            "evidence": float(f"{finding.evidence:.{DIGITS}g}"),
            "alarm": None if finding.alarm is None else start + finding.alarm,
            "since": None if finding.since is None else start + finding.since,
            "moved": finding.moved,
        }
    )


def _in_summary(batches: list[Kept], place: int) -> dict[str, Any]:
    kept = batches[place]
    return {
        "drift_alarm": kept.alarm is not None,
        "drift_evidence": kept.evidence,
        "drift_batches": place + 1 - kept.start,
        "drift_alarm_batch": None if kept.alarm is None else batches[kept.alarm].name,
        "drift_since": None if kept.since is None else batches[kept.since].name,
        "drift_moved": kept.moved,
    }


def _column(work: Path, name: str) -> Floats:
    """A number of every row of the chunks, NaN where there is none."""
    parts = [pq.read_table(part, columns=[name]).column(name) for part in sorted(work.glob("*.parquet"))]
    values = [np.asarray(part.to_numpy(zero_copy_only=False), dtype=np.float64) for part in parts]
    return np.concatenate(values) if values else np.empty(0)
