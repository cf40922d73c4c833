"""A local folder from which only its own files are read, whatever is renamed or linked meanwhile.

A path is opened folder by folder from the top folder's descriptor, without following a link. So a sub-folder that is
replaced by a link while a job runs leads nowhere.
"""

from __future__ import annotations

import errno
import os
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from densitywatch.data.inputs.entries import read_limited
from densitywatch.errors import DataError
from densitywatch.text import as_text

LINK_OUT = (
    "a symbolic link out of the source; not followed (inbox.follow_links in params.yaml, or score --follow-links, "
    "reads what it leads to)"
)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# with O_NONBLOCK, opening a named pipe does not wait for a writer
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


class Tree:
    """The files below `top`, by their names relative to it. Raises DataError when `top` cannot be opened."""

    def __init__(self, top: Path, *, follow_links: bool = False, link_out: str = LINK_OUT) -> None:
        """`follow_links`: read files that links lead to, also outside of `top`. `link_out`: the reason given if not."""
        self._top, self._follow, self._link_out = top, follow_links, link_out
        try:
            self._descriptor = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"{as_text(str(top))}: cannot be listed ({error.strerror})") from None
        weakref.finalize(self, os.close, self._descriptor)
        self._real = top.resolve()

    @contextmanager
    def scan(self, folder: str) -> Iterator[Iterator[os.DirEntry[str]]]:
        """os.scandir of a folder below; "" is `top` itself. Raises DataError when it cannot be listed."""
        try:
            descriptor = self._folder(folder.split("/") if folder else [])
        except OSError as error:
            raise DataError(f"the folder cannot be listed ({error.strerror})") from None
        try:
            with os.scandir(descriptor) as found:
                yield found
        except OSError as error:
            raise DataError(f"the folder cannot be listed ({error.strerror})") from None
        finally:
            os.close(descriptor)

    def open(self, name: str) -> BinaryIO:
        """A regular file below. Raises DataError with the reason when it is none, or a link that is not followed."""
        try:
            try:
                descriptor = self._file(name.split("/"))
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                    raise
                descriptor = self._through_links(name)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a socket
                raise DataError("not a regular file") from None
            raise DataError(f"cannot be opened ({error.strerror})") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise DataError("not a regular file")
        return os.fdopen(descriptor, "rb")

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            try:
                return read_limited(file)
            except OSError as error:
                raise DataError(f"cannot be read ({error.strerror})") from None

    def _through_links(self, name: str) -> int:
        try:
            real = (self._top / name).resolve(strict=True)
        except (OSError, RuntimeError):
            raise DataError("a symbolic link that leads nowhere") from None
        inside = real.is_relative_to(self._real)
        if not inside and not self._follow:
            raise DataError(self._link_out)
        if real.is_dir():
            raise DataError("a symbolic link to a folder; not followed")
        # the target may be replaced before it is opened: again without following links
        return self._file(list(real.relative_to(self._real).parts)) if inside else os.open(real, _FILE)

    def _file(self, parts: list[str]) -> int:
        folder = self._folder(parts[:-1])
        try:
            return os.open(parts[-1], _FILE, dir_fd=folder)
        finally:
            os.close(folder)

    def _folder(self, parts: list[str]) -> int:
        descriptor = os.open(".", _FOLDER, dir_fd=self._descriptor)
        for part in parts:
            try:
                inner = os.open(part, _FOLDER, dir_fd=descriptor)
            finally:
                os.close(descriptor)
            descriptor = inner
        return descriptor
