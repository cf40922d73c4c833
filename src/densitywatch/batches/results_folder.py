"""Results that appear whole: one job a batch, work kept between kills, a swap by rename, verdicts carried along.

A results folder is trusted no more than any other input: what is read back from it is checked, and what is damaged is
named and made anew. Nothing is removed or renamed that does not carry this program's mark (files.py) or is not one of
the files of results; what else lies in a results folder goes along.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from densitywatch.errors import DataError
from densitywatch.files import (
    drop_own_folder,
    is_leftover,
    is_own_folder,
    own_folder,
    read_back,
    read_json,
    write_whole,
)
from densitywatch.progress import say
from densitywatch.text import as_text

SUMMARY = "summary.json"
IDENTITY = "identity.json"
VERDICTS = ("verdicts.json",)
TABLES = ("scores.parquet", "gallery.parquet")
FILES = frozenset([SUMMARY, *VERDICTS, *TABLES, "report.html", "run.json", "validation.html"])

Count = Annotated[int, Field(ge=0, le=2**53)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]


class Identity(BaseModel):
    """What decides a batch's results."""

    source: str
    detector: str
    size: Count
    channels: Count
    limit: Count | None = None
    follow_links: bool = False


class Histogram(BaseModel):
    """The scores in bins: counts of the batch and of the calibration images."""

    edges: Annotated[list[FiniteFloat], Field(min_length=2)]
    batch: Annotated[list[Count], Field(min_length=1)]
    calibration: Annotated[list[Count], Field(min_length=1)]

    @model_validator(mode="after")
    def _as_many(self) -> Histogram:
        if not len(self.batch) == len(self.calibration) == len(self.edges) - 1:
            raise ValueError("the bins are not as many as their edges say")
        return self


class Summary(BaseModel):
    """summary.json as far as it is read back."""

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
    promise: str
    fewest_to_flag: Count | None = None
    content: str
    identity: Identity
    quarantine_reasons: dict[str, Count] = {}
    histogram: Histogram | None


class Work(BaseModel):
    """identity.json of chunks that wait, as far as it is read back."""

    source: str


def behind_link(folder: Path) -> Path:
    """The folder that a symbolic link given for the results leads to, whether it is there yet or not."""
    try:
        return folder.resolve() if folder.is_symlink() else folder
    except (OSError, RuntimeError):
        raise DataError(f"{as_text(str(folder))}: a symbolic link that leads nowhere; choose another --out") from None


def own(folder: Path) -> Path:
    """The marked folder beside the results `folder`, where their work, the new and the old ones are."""
    return folder.parent / f".{folder.name}.densitywatch"


@contextmanager
def only_job(folder: Path) -> Iterator[None]:
    """Wait until no other process works on these results; the lock goes with its holder, however that ends."""
    lock_file = folder.parent / f".{folder.name}.lock"
    try:
        lock = lock_file.open("a")
    except IsADirectoryError:
        raise DataError(f"{lock_file}: a folder is where the lock of these results goes; move it away") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"score: another job works on {as_text(folder.name)}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def recover(folder: Path) -> None:
    """Finish or undo the swap that a killed job left half done; refuse a folder that holds something else.

    Raises DataError when `folder` exists and holds no results.
    """
    old = own(folder) / "old"
    if is_own_folder(own(folder)) and old.is_dir():
        if folder.exists():
            _keep_others(old, folder)
            shutil.rmtree(old)
        else:
            old.rename(folder)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{as_text(str(folder))}: is a file; choose another --out")
    if not folder.is_dir():
        return
    names = {path.name for path in folder.iterdir()}
    if names and not _are_results(folder, names):
        raise DataError(f"{as_text(str(folder))}: holds no results of a batch and is left alone; choose another --out")
    for name in names:  # all who write here hold the lock, so nobody is writing these now
        if is_leftover(name, FILES):
            (folder / name).unlink()


def _are_results(folder: Path, names: set[str]) -> bool:
    """Whether the folder holds a batch's results, damaged ones as well."""
    if read_summary(folder) is not None or names.issuperset(TABLES):
        return True
    return all(name in VERDICTS or is_leftover(name, FILES) for name in names)


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of published results, or None; a damaged one is named."""
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
    """The source whose results, published or in work, have this folder's name."""
    summary = read_summary(folder)
    if summary is not None:
        return str(summary["identity"]["source"])
    try:
        return str(read_back(own(folder) / "work" / IDENTITY, Work)["source"])
    except (FileNotFoundError, DataError):
        return None


def work_folder(folder: Path, identity: dict[str, Any]) -> Path:
    """Where chunks wait; emptied when they belong to another source, detector or rate.

    Raises DataError when something that is not of this program is in the way.
    """
    own_folder(own(folder))
    work = own(folder) / "work"
    try:
        same = read_json(work / IDENTITY) == json.loads(json.dumps(identity))
    except (FileNotFoundError, DataError):
        same = False
    if not same:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        write_whole(work / IDENTITY, json.dumps(identity, sort_keys=True))
    return work


def drop_chunks_from(work: Path, number: int) -> None:
    """Remove chunks past the last one: the batch was larger when a job before began."""
    for path in work.glob("*.parquet"):
        if not path.stem.isdecimal() or int(path.stem) >= number:
            path.unlink()


def fresh_folder(folder: Path) -> Path:
    """An empty folder beside, for the new results."""
    fresh = own(folder) / "new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    return fresh


def discard(folder: Path) -> None:
    """Drop the work on the results `folder`, which are as they should be."""
    drop_own_folder(own(folder))


def keep_verdicts(folder: Path, fresh: Path) -> None:
    """Verdicts are a person's work: they go along when a batch is scored anew."""
    for name in VERDICTS:
        if (folder / name).is_file():
            shutil.copy2(folder / name, fresh / name)


def publish(fresh: Path, folder: Path) -> None:
    """Put the new results in the place of the old ones, then drop what is no longer needed."""
    old = own(folder) / "old"
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    if old.exists():
        _keep_others(old, folder)
    discard(folder)


def _keep_others(old: Path, folder: Path) -> None:
    """What a person has put next to the results stays there."""
    for path in old.iterdir():
        if path.name not in FILES and not is_leftover(path.name, FILES) and not (folder / path.name).exists():
            path.rename(folder / path.name)
