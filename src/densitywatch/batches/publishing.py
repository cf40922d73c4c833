"""New results take the place of old ones as a whole: one process at a time, work kept after a kill, a swap by rename.

The steps, for a results folder `out` and its side folder `.out.densitywatch`:

    1. lock .out.lock, then finish or undo a swap that a killed process left half done      held
    2. score chunks into side/work, write the new results into side/new                     new_results
    3. rename out to side/old, rename side/new to out, move a person's own files over       new_results, at its end
    4. remove the side folder

Nothing is removed or renamed unless it carries this program's mark (files.py) or is one of the files of results. A
person's verdicts and other files stay with the results.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densitywatch.batches.results_folder import (
    FILES,
    GALLERY,
    IDENTITY,
    SCORES,
    VERDICTS_FILE,
    WRITTEN,
    read_summary,
    side_folder,
)
from densitywatch.errors import DataError
from densitywatch.files import (
    drop_own_folder,
    full_disk_as_error,
    is_leftover,
    is_own_folder,
    own_folder,
    read_json,
    write_whole,
)
from densitywatch.progress import say
from densitywatch.text import as_text


@dataclass
class NewResults:
    """What `new_results` gives to its block."""

    work: Path
    """Where scored chunks wait. They survive a killed process."""
    fresh: Path
    """A folder for the new results; it holds the verdicts so far."""
    needed: bool = True
    """Set it to False to keep the published results: the new ones are the same."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the results `folder` for this process alone; a swap that was left half done is finished or undone first.

    Another process waits. The lock ends with its process, however that ends. A full disk inside the block becomes a
    DiskFull. Raises DataError when `folder` exists and holds something else than results.
    """
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
        with full_disk_as_error(folder):
            _recover(folder)
            yield


@contextmanager
def new_results(folder: Path, identity: dict[str, Any]) -> Iterator[NewResults]:
    """A block that writes new results of `folder`; they are published when it ends without an error. Use inside `held`.

    `identity` decides whether chunks that wait are still good: those of another source, detector or rate are dropped.
    After an error the published results are as they were, and the chunks wait for the next job. Raises DataError when
    something that is not this program's is in the way.
    """
    side = side_folder(folder)
    own_folder(side)
    new = NewResults(_work_folder(side / "work", identity), _fresh_folder(side / "new"))
    if (folder / VERDICTS_FILE).is_file():  # verdicts are a person's work: they stay when a batch is scored anew
        shutil.copy2(folder / VERDICTS_FILE, new.fresh / VERDICTS_FILE)
    yield new
    if new.needed:
        if folder.exists():
            folder.rename(side / "old")
        new.fresh.rename(folder)
        if (side / "old").exists():
            _keep_others(side / "old", folder)
    drop_own_folder(side)


def drop_chunks_from(work: Path, number: int) -> None:
    """Remove chunks number `number` and later: the batch was larger when an earlier job began."""
    for path in work.glob("*.parquet"):
        if not path.stem.isdecimal() or int(path.stem) >= number:
            path.unlink()


def _recover(folder: Path) -> None:
    side = side_folder(folder)
    old = side / "old"
    if is_own_folder(side) and old.is_dir():
        if folder.exists():  # killed after the second rename
            _keep_others(old, folder)
            shutil.rmtree(old)
        else:  # killed between the two renames
            old.rename(folder)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{as_text(str(folder))}: is a file; choose another --out")
    if not folder.is_dir():
        return
    names = {path.name for path in folder.iterdir()}
    if names and not _are_results(folder, names):
        raise DataError(f"{as_text(str(folder))}: holds no results of a batch and is left alone; choose another --out")
    for name in names:  # whoever writes here holds the lock, so nobody is writing these now
        if is_leftover(name, WRITTEN):
            (folder / name).unlink()


def _are_results(folder: Path, names: set[str]) -> bool:
    """Whether the folder holds a batch's results, damaged ones included."""
    if read_summary(folder) is not None or names >= {SCORES, GALLERY}:
        return True
    return all(name == VERDICTS_FILE or is_leftover(name, WRITTEN) for name in names)


def _work_folder(work: Path, identity: dict[str, Any]) -> Path:
    """The folder of waiting chunks, emptied when they belong to another identity."""
    try:
        same = read_json(work / IDENTITY) == json.loads(json.dumps(identity))
    except (FileNotFoundError, DataError):
        same = False
    if not same:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        write_whole(work / IDENTITY, json.dumps(identity, sort_keys=True))
    return work


def _fresh_folder(fresh: Path) -> Path:
    """An empty folder for the new results."""
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    return fresh


def _keep_others(old: Path, folder: Path) -> None:
    """Move what a person has put next to the old results to the new ones."""
    for path in old.iterdir():
        if path.name not in FILES and not is_leftover(path.name, WRITTEN) and not (folder / path.name).exists():
            path.rename(folder / path.name)
