"""Files and folders are written whole or not at all, and read back with checks.

A file or folder is written next to its target and then renamed. Its temporary name tells that it is this program's, and
a folder also has a file MARK. Only folders with MARK are ever removed, so no user's folder is taken for a leftover.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densitywatch.errors import DataError, DiskFull

if TYPE_CHECKING:
    from pydantic import BaseModel

MARK = ".made-by-densitywatch"
MOST_JSON = 16 << 20
"""Bytes that a JSON file of this program has at most; a larger one is not read."""
MOST_LISTS = 1 << 30
"""The same for files with an entry for every image."""


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A new folder next to `target` to write into; it replaces `target` when the block ends without an error.

    After an error `target` is as it was before. Raises DataError when the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    temporary = _temporary_path(target)
    own_folder(temporary)
    fresh = temporary / "new"
    try:
        with full_disk_as_error(target):
            fresh.mkdir()
            yield fresh
        if target.is_symlink() or target.is_file():
            target.unlink()
        elif target.exists():
            shutil.rmtree(target)
        fresh.rename(target)
    finally:
        drop_own_folder(temporary)


@contextmanager
def whole_file(target: Path, *, new_folder: bool = True) -> Iterator[Path]:
    """A path next to `target` to write to; it is renamed to `target` when the block ends without an error.

    After the block the file is on the disk, so it survives a loss of power.
    `new_folder`: make the folder of `target` where there is none. Raises DiskFull when the disk is full.
    """
    if new_folder:
        target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(target)
    try:
        with full_disk_as_error(target):
            yield temporary
            _to_disk(temporary)
            temporary.replace(target)
            _to_disk(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def full_disk_as_error(target: Path) -> Iterator[None]:
    """Turn "no space left" and "quota exceeded" into a DiskFull that says where and what to do."""
    try:
        yield
    except Exception as error:  # safetensors and SQLite have errors of their own
        if not is_full_disk(error):
            raise
        raise DiskFull(
            f"{target}: the disk is full, nothing was kept of it; free some space and run the stage again"
        ) from None


def is_full_disk(error: Exception) -> bool:
    """Whether an OSError, or an error of safetensors or SQLite, says that no space, or no quota, is left."""
    full = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError):
        return error.errno in full
    # a quota that is used up is to SQLite an error of writing like any other
    sqlite = getattr(error, "sqlite_errorname", "") in ("SQLITE_FULL", "SQLITE_IOERR_WRITE")
    return sqlite or any(f"os error {number})" in str(error) for number in full)


def write_whole(path: Path, data: bytes | str, *, new_folder: bool = True) -> None:
    """Write a small file whole or not at all; `new_folder` as in `whole_file`."""
    with whole_file(path, new_folder=new_folder) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """The hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def content_digest(folder: Path) -> str:
    """sha256 over the names and bytes of all files in `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{path.relative_to(folder).as_posix()} {file_digest(path)}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_json(path: Path, most: int = MOST_JSON) -> Any:
    """The value in a JSON file that this program wrote before.

    Raises FileNotFoundError, or DataError where the file is not whole JSON: cut off, with NaN or half a character in
    it, nested without end, larger than `most` bytes, or no file.
    """
    try:
        # with O_NONBLOCK, opening a named pipe does not wait for a writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise DataError(f"{path}: not a file")
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(most + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > most:
        raise DataError(f"{path}: larger than {most >> 20} MiB; not written by densitywatch")
    try:
        text = data.decode()
        value = json.loads(text, parse_constant=_no_number, parse_float=_number)
        if re.search(r"\\u[dD][89a-fA-F]", text):  # two halves are one character; one alone cannot be written or shown
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise DataError(f"{path}: not whole JSON; damaged, or not written by densitywatch") from None
    return value


def read_back(path: Path, form: type[BaseModel], most: int = MOST_JSON) -> dict[str, Any]:
    """`read_json` of a file that must have the entries of `form`, with the exact types: "8" is no number.

    Raises as `read_json` does, and DataError with the first entry that does not fit.
    """
    from pydantic import ValidationError

    value = read_json(path, most)
    try:
        form.model_validate(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:40] for part in first["loc"][:4])
        raise DataError(
            f"{path}: {f'{where}: ' if where else ''}{first['msg']}; damaged, or not written by densitywatch"
        ) from None
    assert isinstance(value, dict)
    return value


def own_folder(path: Path) -> None:
    """Make the folder `path` with the file MARK; one that has MARK already is left as it is.

    Raises DataError when something else is there.
    """
    with suppress(FileExistsError):
        path.mkdir()
    if is_own_folder(path):
        return
    # an empty folder without MARK: the process was killed after mkdir
    if path.is_symlink() or not path.is_dir() or any(path.iterdir()):
        raise DataError(f"{path}: is in the way and was not made by densitywatch; move it away")
    (path / MARK).touch()


def is_own_folder(path: Path) -> bool:
    """Whether `path` is a folder with the file MARK."""
    return path.is_dir() and not path.is_symlink() and (path / MARK).is_file()


def drop_own_folder(path: Path) -> None:
    """Remove a folder with everything in it, MARK last. A folder without MARK is only removed when it is empty."""
    if is_own_folder(path):
        for item in path.iterdir():
            if item.name != MARK:
                shutil.rmtree(item, ignore_errors=True) if item.is_dir() and not item.is_symlink() else item.unlink(
                    missing_ok=True
                )
        (path / MARK).unlink()
    with suppress(OSError):
        path.rmdir()


def is_leftover(name: str, of: frozenset[str]) -> bool:
    """Whether `name` is the temporary file of a killed process for one of the files `of`."""
    found = re.fullmatch(r"\.(.+)\.densitywatch\.partial-\d+", name)
    return found is not None and found.group(1) in of


def _temporary_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.densitywatch.partial-{os.getpid()}")


def _remove_leftovers(target: Path) -> None:
    """Remove the temporary folders of killed processes next to `target`; a running process keeps its folder."""
    start = f".{target.name}.densitywatch.partial-"
    for folder in target.parent.iterdir():
        number = folder.name.removeprefix(start)
        if not folder.name.startswith(start) or not number.isdecimal() or not folder.is_dir():
            continue
        try:
            if int(number) != os.getpid():  # an earlier process may have had our number
                os.kill(int(number), 0)
                continue
        except (PermissionError, OverflowError):
            continue
        except ProcessLookupError:
            pass
        drop_own_folder(folder)


def _to_disk(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # a file system without fsync, or a folder that may be written and not listed
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value
