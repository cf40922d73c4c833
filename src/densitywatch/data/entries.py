"""One input file of a source, a member of an archive among them: its name, and its bytes or the reason for none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

from densitywatch.data.images import MAX_BYTES
from densitywatch.errors import DataError

TOO_LARGE = f"larger than {MAX_BYTES >> 20} MiB; not read"


@dataclass(frozen=True)
class Entry:
    """One input file: `path` is valid UTF-8, relative to the source; `read()` gives its bytes.

    `read` raises DataError with the reason when the bytes cannot or must not be had. `independent` entries may be read
    in any order and by several threads; the others at once, before the next entry is asked for.
    """

    path: str
    read: Callable[[], bytes]
    independent: bool = True


class SourceUnreachable(DataError):
    """The store behind a source stopped answering; no single file is to blame, so the job stops and can go on later."""


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
