"""One input file of a source, a member of an archive among them: its name, and its bytes or the reason for none."""

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

    `read` raises DataError with the reason when the bytes cannot or must not be had. `independent` entries may be read
    in any order and by several threads; the others at once, before the next entry is asked for.
    """

    path: str
    read: Callable[[], bytes]
    independent: bool = True
    label: str | None = None
    """What a column of a Parquet file says of it."""
    place: str | None = None
    """The path without the names of archives on the way, where it differs; what a dataset's parts and labels are by."""


class SourceUnreachable(DataError):
    """The store behind a source stopped answering; no single file is to blame, so the job stops and can go on later."""

    why = ""
    """What the store's library said."""


class Damaged(DataError):
    """An archive that gave members and is not whole; the text says where it is damaged."""


def leads_out(name: str) -> bool:
    """Whether a member's name, taken for a path, would leave the archive."""
    return name.startswith(("/", "\\")) or bool(re.match(r"[A-Za-z]:", name)) or ".." in re.split(r"[/\\]", name)


def most_members(length: int) -> int:
    """How many members an archive of `length` bytes may have: an image takes more than 16 of them, however packed."""
    return 10_000 + length // 16


def refused(reason: str) -> Callable[[], bytes]:
    """A `read` that says why not."""

    def read() -> bytes:
        raise DataError(reason)

    return read


def read_limited(file: IO[bytes]) -> bytes:
    """The rest of a file object; DataError when it is larger than MAX_BYTES."""
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise DataError(TOO_LARGE)
    return data
