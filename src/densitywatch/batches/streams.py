"""What earlier batches left to the next one, kept next to the results: stream-<digest>.json.

A stream is all batches that are judged with one budget (detector/stream.py): those of one calibration set, at one rate.
A new version of the detector has another calibration set, so it starts a new stream with a new file.

A batch gets its place in the stream once, before its results are published, and keeps it. The same files scored again,
or after a crash, find their place and are judged as before. Files that have changed under the same name are judged
as a batch that comes later. The place of the earlier files is withdrawn before: it neither earns nor is charged, so
the new files are judged as if the name were new. Where the earlier files come back, their place stands again. So what
counts is one judgement of each name, whose flags are those in the results folder. The promise is of these flags, as
long as files change for another reason than what was flagged.

The same files may have other p-values: an image could not be decoded then and can be now, or a score was rounded in
another way. They would have other flags than those that were charged. So they are files that have changed, too.

Why a later place keeps the promise. The proof in detector/stream.py asks two things of a batch: it is charged for the
flags that it has, and what it is judged with says nothing about its own images. A later place is made with today's
p-values, so its charge belongs to its flags. The earlier place of the same images is left out of what is known, so it
says nothing about them. Where no other batch was judged between the two places, this is all.

Where some were, less is proved. They were judged with what the withdrawn place had left, so they may have spent what
its flags had earned. Then the budget is below zero, by at most the rate times the withdrawn flags, and no image is
flagged while it is. The share holds of the flags that count and the withdrawn ones together. And what these batches
have flagged says a little about the images that are judged again, which the proof does not cover.

A charge that stayed without its flags could never be paid back, and a folder that grows while it is scored would end
the stream: of five outliers that come one by one with 10 images each, the last look would flag none.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, FiniteFloat

from densitywatch.arrays import Floats
from densitywatch.detector.stream import Decision, Past, decide
from densitywatch.errors import DataError
from densitywatch.files import MOST_LISTS, read_back, write_whole
from densitywatch.params import Control

Count = Annotated[int, Field(ge=0, le=2**53)]
Charge = Annotated[FiniteFloat, Field(ge=0)]


@dataclass(frozen=True)
class Rule:
    """How the images of a batch are flagged."""

    rate: float
    """The share of false alarms that is allowed."""
    control: Control = "batch"
    """stream: the share holds over all batches together; batch: on average over batches, each by itself."""
    strict: bool = False
    """Hold the share for this calibration set, not only on average over such sets."""
    alike: int = 1
    """Images of one scene in a batch, at most. The batch rule does not use it."""


class Place(BaseModel):
    """A batch in a stream: what was known before it, and what it added."""

    batch: str
    """Its source."""
    content: str
    """The digest of its files."""
    p_values: str | None = None
    """The digest of its p-values. None in a place that was written before there was one."""
    images: Count
    flagged_before: Count
    charged_before: Charge
    quiet: Count
    flagged: Count
    charged: Charge
    stands: bool = True
    """False while its name has other files: it earns nothing and is charged nothing."""


class Stream(BaseModel):
    """The file of a stream."""

    rule: dict[str, Any]
    batches: list[Place]


def stream_file(results: Path, calibration: Floats, rule: Rule) -> Path:
    """Where the stream's file is, in the folder that has the batches' results."""
    text = json.dumps(_rule(calibration, rule), sort_keys=True)
    return results / f"stream-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"


def check_stream(file: Path) -> None:
    """Raise DataError when the file is there and damaged: with a lost budget the promise would be lost as well."""
    _read(file)


def judge(
    results: Path, p: Floats, calibration: Floats, rule: Rule, *, batch: str, content: str
) -> tuple[Decision, Past, int]:
    """Flag the images of a batch in its stream; returns the decision, what was known before, and its number from 1.

    `p`: plain p-values of its scored images. `batch`, `content`: its source and the digest of its files. A place is
    known by these three. It is on the disk when this returns. Processes take turns. Raises DataError when the stream's
    file is damaged.
    """
    file = stream_file(results, calibration, rule)
    with _turn(file):
        places = _read(file)
        digest = hashlib.sha256(np.ascontiguousarray(p, dtype="<f8").tobytes()).hexdigest()
        same = (i for i, old in enumerate(places) if (old["batch"], old["content"]) == (batch, content))
        at = next((i for i in same if _has_these(places[i], p, digest, len(calibration), rule)), None)
        stood = [_stands(old) for old in places]
        for number, old in enumerate(places):
            if old["batch"] == batch:
                old["stands"] = number == at
        past = _past([old for old in places if _stands(old)]) if at is None else _known(places[at])
        decision = decide(p, len(calibration), rule.rate, past, alike=rule.alike, strict=rule.strict)
        if at is None:
            at = len(places)
            place = Place(
                batch=batch,
                content=content,
                p_values=digest,
                images=len(p),
                flagged_before=past.flagged,
                charged_before=past.charged,
                quiet=past.quiet,
                flagged=int(decision.flags.sum()),
                charged=decision.charged,
            )
            places.append(place.model_dump())
        if stood != [_stands(old) for old in places]:
            lines = ",\n".join(json.dumps(line) for line in places)
            write_whole(file, f'{{"rule": {json.dumps(_rule(calibration, rule))}, "batches": [\n{lines}\n]}}\n')
        return decision, past, at + 1


def _has_these(place: dict[str, Any], p: Floats, digest: str, calibration_size: int, rule: Rule) -> bool:
    """Whether the place of a batch was made with these p-values."""
    if (kept := place.get("p_values")) is not None:
        return bool(kept == digest)
    # A place that was written before has no digest. It is taken for the same where today's p-values give as many flags
    # and the same charge, which is all that a place adds to the budget: the flags in the results are paid for.
    again = decide(p, calibration_size, rule.rate, _known(place), alike=rule.alike, strict=rule.strict)
    now = (len(p), int(again.flags.sum()), again.charged)
    return now == (place["images"], place["flagged"], place["charged"])


def _stands(place: dict[str, Any]) -> bool:
    return bool(place.get("stands", True))


def _past(places: list[dict[str, Any]]) -> Past:
    quiet = 0
    for place in reversed(places):
        if place["flagged"]:
            break
        quiet += 1
    return Past(sum(p["flagged"] for p in places), math.fsum(p["charged"] for p in places), quiet)


def _known(place: dict[str, Any]) -> Past:
    return Past(place["flagged_before"], place["charged_before"], place["quiet"])


def _rule(calibration: Floats, rule: Rule) -> dict[str, Any]:
    scores = np.ascontiguousarray(calibration, dtype="<f8")
    return {
        "calibration": hashlib.sha256(scores.tobytes()).hexdigest(),
        "calibration_images": len(scores),
        "false_discovery_rate": rule.rate,
        "strict": rule.strict,
        "alike": rule.alike,
    }


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        return list(read_back(file, Stream, MOST_LISTS)["batches"])
    except FileNotFoundError:
        return []
    except DataError as error:
        raise DataError(f"{error}; mend it, or move it away to start a new stream") from None


@contextmanager
def _turn(file: Path) -> Iterator[None]:
    """Hold the stream for this process; the lock ends with the process, however that ends."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock_file = file.with_name(f".{file.name}.lock")
    try:
        lock = lock_file.open("a")
    except IsADirectoryError:
        raise DataError(f"{lock_file}: a folder is where the lock of this stream goes; move it away") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
