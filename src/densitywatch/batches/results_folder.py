"""A results folder: where it is, which files it has, and what is read back from it.

    results/<batch>/                scores.parquet, summary.json, report.html, gallery.parquet, run.json;
                                    verdicts.json and drawn.parquet after a review, validation.html after a
                                    scheduled job
    results/.<batch>.densitywatch/  work in progress, until the results are published
    results/.<batch>.lock           held by the process that changes the results

A results folder is trusted no more than any other input: what is read back is checked, and damage is named. How new
results take the place of old ones is in publishing.py. Nothing here imports pyarrow or torch: a schedule that looks at
the inbox every few minutes needs this file only.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from densitywatch.data.inputs.archives import ARCHIVE
from densitywatch.data.inputs.source import is_local, local_path, without_secrets
from densitywatch.errors import DataError
from densitywatch.files import read_back, read_json, write_whole
from densitywatch.params import Control, Params
from densitywatch.progress import say
from densitywatch.text import as_text

SCORES = "scores.parquet"
SUMMARY = "summary.json"
GALLERY = "gallery.parquet"
REPORT = "report.html"
CHECKS = "validation.html"
VERDICTS_FILE = "verdicts.json"
RUN = "run.json"
FILES = frozenset([SCORES, SUMMARY, GALLERY, REPORT, CHECKS, VERDICTS_FILE, RUN])
DRAWN = "drawn.parquet"
WRITTEN = FILES | {DRAWN}
"""With the draw of a review, which is kept as it is when the batch is scored anew."""
IDENTITY = "identity.json"
OVER_TIME = "index.html"
"""The page over time (over_time.py), next to the results folders."""
NOT_BATCHES = (".html", ".json", ".damaged")
"""Endings of the files that are kept next to the results folders."""

BATCH_NAME = r"^[A-Za-z0-9-][A-Za-z0-9._-]*$"
"""The shape of every name that `batch_name` gives. A name that is read back makes paths, so it is checked."""
BatchName = Annotated[str, Field(pattern=BATCH_NAME, max_length=1000)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]


class Identity(BaseModel):
    """What decides a batch's results."""

    source: str
    detector: str
    size: Count | Annotated[list[Count], Field(min_length=2, max_length=2)]
    channels: Count
    limit: Count | None = None
    follow_links: bool = False


class Histogram(BaseModel):
    """The scores in bins: counts of the batch and of the calibration images."""

    edges: Annotated[list[FiniteFloat], Field(min_length=2)]
    batch: Annotated[list[Count], Field(min_length=1)]
    calibration: Annotated[list[Count], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_count_a_bin(self) -> Histogram:
        if not len(self.batch) == len(self.calibration) == len(self.edges) - 1:
            raise ValueError("the number of bins does not fit the number of edges")
        return self


class Take(BaseModel):
    """One way to be flagged: this many images of the batch, or of a block of it, at or below this p-value."""

    p_value: Share
    images: Count


class Summary(BaseModel):
    """The part of summary.json that is read back."""

    model_config = ConfigDict(extra="allow")

    batch: str
    files: Count
    scored: Count
    quarantined: Count
    skipped: Count = 0
    skipped_kinds: dict[str, Count] = {}
    outliers: Count
    changed_to_fit: Count
    false_discovery_rate: Share
    drift_p_value: Share
    drift_stream: str | None = None
    drift_alarm: bool | None = None
    drift_evidence: Annotated[FiniteFloat, Field(ge=0)] | None = None
    drift_batches: Count | None = None
    drift_alarm_batch: BatchName | None = None
    drift_since: BatchName | None = None
    drift_moved: str | None = None
    drift_looked: bool | None = None
    promise: str
    control: Control = "batch"
    level: Annotated[FiniteFloat, Field(ge=0)] | None = None
    stream_batch: Count | None = None
    stream_flagged_before: Count | None = None
    fewest_to_flag: Count | None = None
    takes: list[Take] = []
    to_be_flagged: str = ""
    content: str
    identity: Identity
    quarantine_reasons: dict[str, Count] = {}
    histogram: Histogram | None


class Work(BaseModel):
    """The part of the waiting chunks' identity.json that is read back."""

    source: str


def results_folder(source: str, params: Params, root: Path) -> Path:
    """Where the results of `source` go: <inbox.results>/<name>. A source of the same name from elsewhere gets its own.

    The second one's folder has a digest of its address in its name.
    """
    shown = shown_source(source, root)
    folder = root / params.inbox.results / batch_name(shown)
    if owner(folder) in (None, shown):
        return folder
    return folder.with_name(f"{folder.name}-{hashlib.sha256(shown.encode()).hexdigest()[:8]}")


def batch_name(source: str) -> str:
    """The folder name of a source's results: its last part, made of safe characters, that no file next to it has."""
    last = [part for part in re.split(r"[/\\]|::", source.rstrip("/")) if part][-1:] or ["batch"]
    plain = ARCHIVE.sub("", last[0])
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", plain).strip("._")[:100]
    if safe == plain and not safe.lower().endswith(NOT_BATCHES):
        return safe
    whole = source.encode("utf-8", "surrogatepass")  # the name of a local folder may be no UTF-8
    return f"{safe or 'batch'}-{hashlib.sha256(whole).hexdigest()[:8]}"


def is_batch_name(name: str) -> bool:
    """Whether a name is shaped like one of `batch_name`: it leads to no other folder."""
    return re.fullmatch(BATCH_NAME, name) is not None


def shown_source(source: str, root: Path) -> str:
    """The source as results name it: relative to the project where it lies inside, without passwords."""
    if not is_local(source):
        return as_text(without_secrets(source))
    path = root / local_path(source)
    path = path.parent.resolve() / path.name if path.name not in ("", "..") else path.resolve()
    inside = path.is_relative_to(root.resolve())
    return as_text(str(path.relative_to(root.resolve()) if inside else path))


def behind_link(folder: Path) -> Path:
    """The folder that a symbolic link given for the results leads to, whether it exists yet or not."""
    try:
        return folder.resolve() if folder.is_symlink() else folder
    except (OSError, RuntimeError):
        raise DataError(f"{as_text(str(folder))}: a symbolic link that leads nowhere; choose another --out") from None


def side_folder(folder: Path) -> Path:
    """The marked folder next to the results `folder`: chunks that wait, and new and old results during the swap."""
    return folder.parent / f".{folder.name}.densitywatch"


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of published results. None where there is none, or a damaged one, which is named."""
    try:
        return read_back(folder / SUMMARY, Summary)
    except FileNotFoundError:
        return None
    except DataError as error:
        _name_once(str(error))
        return None


@cache
def _name_once(message: str) -> None:
    say(f"score: {as_text(message)}; its results are not used")


def owner(folder: Path) -> str | None:
    """The source whose results, published or in work, use this folder; None where there are none."""
    summary = read_summary(folder)
    if summary is not None:
        return str(summary["identity"]["source"])
    try:
        return str(read_back(side_folder(folder) / "work" / IDENTITY, Work)["source"])
    except (FileNotFoundError, DataError):
        return None


def note_run(folder: Path, **facts: Any) -> None:
    """Add facts to run.json, which holds what differs from run to run. A `listing` in it marks a batch as done."""
    write_whole(folder / RUN, json.dumps({**read_run(folder), **facts}, indent=2) + "\n", new_folder=False)


def read_run(folder: Path) -> dict[str, Any]:
    """What run.json says. Empty where it is missing or damaged: then the batch is only looked at again."""
    try:
        run = read_json(folder / RUN)
    except (FileNotFoundError, DataError):
        return {}
    return run if isinstance(run, dict) else {}
