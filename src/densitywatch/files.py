"""Folders and files that appear whole or not at all, and a full disk as a sentence."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from densitywatch.errors import DataError


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A fresh folder beside `target` to write into; it takes the place of `target` when the block ends well.

    After an error `target` is as it was before. Raises DataError when the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    beside = target.parent / f".{target.name}.partial-{os.getpid()}"
    try:
        beside.mkdir()
        with full_disk_as_error(target):
            yield beside
        if target.is_symlink() or target.is_file():
            target.unlink()
        elif target.exists():
            shutil.rmtree(target)
        beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to; it is renamed to `target` when the block ends without an error.

    Raises DataError when the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        with full_disk_as_error(target):
            yield beside
            beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def full_disk_as_error(target: Path) -> Iterator[None]:
    """Turn "no space left" and "quota exceeded" into a DataError that says where and what to do."""
    try:
        yield
    except OSError as error:
        if not is_full_disk(error):
            raise
        raise DataError(
            f"{target}: the disk is full, nothing was kept of it; free some space and run the stage again"
        ) from None


def is_full_disk(error: OSError) -> bool:
    """Whether the error says that no space, or no quota, is left."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a small file beside, then rename it to `path`."""
    with whole_file(path) as beside:
        beside.write_bytes(data.encode() if isinstance(data, str) else data)


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """The hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def content_digest(folder: Path) -> str:
    """sha256 over the names and bytes of all files in `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{path.relative_to(folder).as_posix()} {file_digest(path)}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _remove_leftovers(target: Path) -> None:
    """Remove what a killed process left beside `target`; a folder of a process that still runs stays."""
    for folder in target.parent.glob(f".{target.name}.partial-*"):
        with suppress(ValueError, PermissionError):
            pid = int(folder.name.rsplit("-", 1)[1])
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                shutil.rmtree(folder, ignore_errors=True)
