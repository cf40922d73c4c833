"""Where a batch comes from: a folder, a glob, a zip or tar archive, Parquet, or any fsspec address.

A source is a sequence of `Entry`, one an input file, in an order that depends on the files alone. Nothing is extracted
to disk, nothing outside the source is read, and one entry's bytes are in memory at a time. Zip, tar and Parquet files
inside a folder are opened as well, one level deep. What cannot be read is an entry whose `read` says why.
"""

from __future__ import annotations

import glob
import io
import os
import re
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from densitywatch.data.archives import ARCHIVE, members
from densitywatch.data.entries import Entry, SourceUnreachable, read_limited, refused
from densitywatch.errors import DataError
from densitywatch.text import as_text, one_line

MARKER = "_SUCCESS"
"""The file by which a writer says that a batch is complete; at the top of a batch it is no input."""
REMOTE_TRIES = 3


def entries(source: str) -> Iterator[Entry]:
    """Every input file of `source`, in a fixed order.

    Raises DataError, before the first entry, when there is no such source or it cannot be reached.
    """
    if is_local(source):
        return _local(Path(source.removeprefix("file://")))
    return _remote(source)


def is_local(source: str) -> bool:
    return source.startswith("file://") or not ("://" in source or "::" in source)


def without_secrets(source: str) -> str:
    """`source` as it may be shown: user, password and query of an address are left out."""
    return re.sub(r"\?[^:]*", "", re.sub(r"(\w+://)[^/@:]*(:[^@/]*)?@", r"\1", source)) if "://" in source else source


def _local(path: Path) -> Iterator[Entry]:
    if path.is_dir():
        return _files_of_folder(path)
    if path.is_file():
        return _file(path.parent, path, alone=True)
    if glob.has_magic(str(path)):
        return _local_glob(path)
    if path.exists():
        raise DataError(f"{as_text(str(path))}: neither a folder nor a file; give a folder, an archive or a glob")
    raise DataError(f"{as_text(str(path))}: no such folder or file; check the source's spelling")


def _files_of_folder(top: Path) -> Iterator[Entry]:
    # a generator would raise only when first asked: an unreadable source is said at once
    try:
        with os.scandir(top):
            pass
    except OSError as error:
        raise DataError(f"{as_text(str(top))}: cannot be listed ({error.strerror})") from None
    return _walk(top, top)


def _walk(top: Path, base: Path) -> Iterator[Entry]:
    """Depth first, by a stack: a folder nested a thousand deep must not exhaust the interpreter's own."""
    folders = [str(top)]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as found:
                # names alone: a hundred thousand directory entries would take five times the memory
                kinds = [(child.name, child.is_dir(follow_symlinks=False)) for child in found]
        except OSError as error:
            yield Entry(_relative(folder, base), refused(f"the folder cannot be listed ({error.strerror})"))
            continue
        kinds.sort(key=lambda kind: os.fsencode(kind[0]))
        folders.extend(f"{folder}/{name}" for name, inside in reversed(kinds) if inside)
        names = [name for name, inside in kinds if not inside and not (name == MARKER and folder == str(top))]
        del kinds
        for name in names:
            yield from _file(base, Path(folder, name))


def _local_glob(pattern: Path) -> Iterator[Entry]:
    fixed = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    base = Path(*fixed)
    found = sorted(glob.glob(str(pattern), recursive=True), key=os.fsencode)  # noqa: PTH207 (names that are no UTF-8)
    if not found:
        raise DataError(f"{as_text(str(pattern))}: matches no file; check the pattern, and quote it for the shell")
    return (entry for name in found for entry in _matched(Path(name), base))


def _matched(path: Path, base: Path) -> Iterator[Entry]:
    if path.is_dir() and not path.is_symlink():
        # a recursive pattern lists a folder's files by itself
        return iter(())
    return iter(()) if path.name == MARKER else _file(base, path)


def _file(base: Path, path: Path, *, alone: bool = False) -> Iterator[Entry]:
    """A file's own entry, or its members' when it is an archive; `alone`: the file is the whole source."""
    name = _relative(str(path), base)
    if not ARCHIVE.search(path.name):
        yield Entry(name, partial(_read_local, path, base))
        return
    try:
        file = _open_inside(path, base)
    except DataError as error:
        yield Entry(name, refused(str(error)))
        return
    with file:
        yield from members(file, name, "" if alone else f"{name}/")


def _relative(path: str, base: Path) -> str:
    return as_text(os.path.relpath(path, base))


def _open_inside(path: Path, base: Path) -> BinaryIO:
    """Open a regular file of the source; links that lead out of it, pipes and devices are refused, not followed."""
    try:
        if path.is_symlink():
            real = path.resolve(strict=True)
            if not real.is_relative_to(base.resolve()):
                raise DataError("a symbolic link out of the source; not followed")
            if real.is_dir():
                raise DataError("a symbolic link to a folder; not followed")
            path = real
        # without O_NONBLOCK the opening of a named pipe would wait for a writer for ever
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, RuntimeError) as error:
        link = "a symbolic link that leads nowhere" if path.is_symlink() else None
        raise DataError(link or f"cannot be opened ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError("not a regular file")
    return os.fdopen(descriptor, "rb")


def _read_local(path: Path, base: Path) -> bytes:
    with _open_inside(path, base) as file:
        try:
            return read_limited(file)
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})") from None


def _remote(source: str) -> Iterator[Entry]:
    import fsspec

    shown = without_secrets(source)
    try:
        filesystem, path = fsspec.core.url_to_fs(source)
        if glob.has_magic(path):
            base = re.split(r"[^/]*[*?\[]", path, maxsplit=1)[0]
            found = [name for name in filesystem.glob(path) if not filesystem.isdir(name)]
        elif filesystem.isdir(path):
            base, found = path, filesystem.find(path)
        elif filesystem.isfile(path):
            base, found = path.rpartition("/")[0], [path]
        else:
            raise FileNotFoundError
        found = sorted(found)
    except FileNotFoundError:
        raise DataError(f"{shown}: no such folder or file; check the address") from None
    except Exception as error:  # every file system behind fsspec has its own exceptions
        raise DataError(f"{shown}: cannot be reached ({one_line(error)})") from None
    found = [name for name in found if _below(name, base) != MARKER]
    return _remote_entries(filesystem, found, base, alone=found == [path])


def _remote_entries(filesystem: Any, found: list[str], base: str, *, alone: bool) -> Iterator[Entry]:
    for path in found:
        name = as_text(_below(path, base))
        if not ARCHIVE.search(path):
            yield Entry(name, partial(_read_remote, filesystem, path))
            continue
        try:
            file = filesystem.open(path, "rb")
        except FileNotFoundError:
            yield Entry(name, refused("went away while the batch was read"))
            continue
        with file, io.BufferedReader(_Watched(file, path), 1 << 20) as watched:
            yield from members(cast(BinaryIO, watched), name, "" if alone else f"{name}/")


def _below(path: str, base: str) -> str:
    return path.removeprefix(base).lstrip("/")


def _read_remote(filesystem: Any, path: str) -> bytes:
    """One file's bytes. A file that is gone or not allowed is that file's trouble; any other failure is the store's."""
    for attempt in range(1, REMOTE_TRIES + 1):
        try:
            with filesystem.open(path, "rb") as file:
                return read_limited(file)
        except FileNotFoundError:
            raise DataError("went away while the batch was read") from None
        except PermissionError:
            raise DataError("this user may not read it") from None
        except DataError:
            raise
        except Exception as error:  # every file system behind fsspec has its own exceptions
            if attempt == REMOTE_TRIES:
                raise _unreachable(path, error) from None
    raise AssertionError("the loop returns or raises")


class _Watched(io.RawIOBase):
    """A remote file whose failures are the store's and not the archive's that is read from it."""

    def __init__(self, file: Any, path: str) -> None:
        super().__init__()
        self._file, self._path = file, path

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except Exception as error:
            raise _unreachable(self._path, error) from None
        buffer[: len(data)] = data
        return len(data)


def _unreachable(path: str, error: Exception) -> SourceUnreachable:
    return SourceUnreachable(
        f"{as_text(path)}: cannot be read any more ({one_line(error)}); run it again to go on from here"
    )
