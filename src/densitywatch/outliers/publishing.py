"""Results that appear whole: one job a batch, work kept between kills, a swap by rename, verdicts carried along."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from densitywatch.errors import DataError
from densitywatch.files import write_whole
from densitywatch.progress import say
from densitywatch.text import as_text

SUMMARY = "summary.json"
IDENTITY = "identity.json"
VERDICTS = ("verdicts.json",)


def _beside(folder: Path, what: str) -> Path:
    return folder.parent / f".{folder.name}.{what}"


@contextmanager
def only_job(folder: Path) -> Iterator[None]:
    """Wait until no other process works on these results; the lock goes with its holder, however that ends."""
    with _beside(folder, "lock").open("a") as lock:
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
    old = _beside(folder, "old")
    if old.is_dir():
        if folder.exists():
            shutil.rmtree(old)
        else:
            old.rename(folder)
    if folder.is_dir():
        for partial in folder.glob(".*.partial-*"):  # all who write here hold the lock, so nobody is writing these now
            partial.unlink()
    if folder.is_dir() and any(folder.iterdir()) and read_summary(folder) is None:
        raise DataError(f"{as_text(str(folder))}: holds no results of a batch and is left alone; choose another --out")
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{as_text(str(folder))}: is a file; choose another --out")


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of published results, or None."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) and "identity" in summary else None


def owner(folder: Path) -> str | None:
    """The source whose results, published or in work, have this folder's name."""
    summary = read_summary(folder)
    if summary is not None:
        return str(summary["identity"].get("source"))
    try:
        return str(json.loads((_beside(folder, "work") / IDENTITY).read_text(encoding="utf-8"))["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def work_folder(folder: Path, identity: dict[str, Any]) -> Path:
    """Where chunks wait; emptied when they belong to another source, detector or rate."""
    work = _beside(folder, "work")
    text = json.dumps(identity, sort_keys=True)
    try:
        same = (work / IDENTITY).read_text(encoding="utf-8") == text
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        write_whole(work / IDENTITY, text)
    return work


def drop_chunks_from(work: Path, number: int) -> None:
    """Remove chunks past the last one: the batch was larger when a job before began."""
    for path in work.glob("*.parquet"):
        if int(path.stem) >= number:
            path.unlink()


def fresh_folder(folder: Path) -> Path:
    """An empty folder beside, for the new results."""
    fresh = _beside(folder, "new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    return fresh


def discard(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def keep_verdicts(folder: Path, fresh: Path) -> None:
    """Verdicts are a person's work: they go along when a batch is scored anew."""
    for name in VERDICTS:
        if (folder / name).is_file():
            shutil.copy2(folder / name, fresh / name)


def publish(fresh: Path, folder: Path, work: Path) -> None:
    """Put the new results in the place of the old ones, then drop what is no longer needed."""
    old = _beside(folder, "old")
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    discard(old, work)
