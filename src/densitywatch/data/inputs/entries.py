"""One input file of a source or member of an archive: its name, and its bytes or the reason for none."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

from densitywatch.data.decoding.images import MAX_BYTES
from densitywatch.errors import DataError

TOO_LARGE = f"larger than {MAX_BYTES >> 20} MiB; not read"
OUTSIDE = "its name leads out of the archive; not trusted"


@dataclass(frozen=True)
class Entry:
    """One input file: `path` is valid UTF-8, relative to the source; `read()` gives its bytes.

    `read` raises DataError with the reason when the bytes cannot be read or are not allowed. `independent` entries may
    be read in any order and by several threads; the others must be read before the next entry is asked for.
    """

    path: str
    read: Callable[[], bytes]
    independent: bool = True
    label: str | None = None
    """The label in a column of a Parquet file."""
    place: str | None = None
    """The path without the names of archives on the way, where it differs: it decides a dataset's parts and labels."""


class SourceUnreachable(DataError):
    """The store behind a source stopped answering. No single file is at fault, so the job stops and can go on later."""

    why = ""
    """The message of the store's library."""


class Damaged(DataError):
    """An archive from which members were read and that is not whole; the message says where it is damaged."""


def leads_out(name: str) -> bool:
    """Whether a member's name, as a path, would lead out of the archive."""
    return name.startswith(("/", "\\")) or bool(re.match(r"[A-Za-z]:", name)) or ".." in re.split(r"[/\\]", name)


def most_members(length: int) -> int:
    """Number of members that an archive of `length` bytes may have: a packed image has more than 16 bytes."""
    return 10_000 + length // 16


def refused(reason: str) -> Callable[[], bytes]:
    """A `read` that raises DataError with this reason."""

    def read() -> bytes:
        raise DataError(reason)

    return read


def read_limited(file: IO[bytes]) -> bytes:
    """The rest of a file object; DataError when it is larger than MAX_BYTES."""
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise DataError(TOO_LARGE)
    return data
