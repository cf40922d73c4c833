"""Which listing each batch of the inbox had when it was scored, without opening a file for every batch.

    <inbox.results>/.inbox.json    for each batch: its results folder, the state of run.json there, the listing in it;
                                   below "", for each batch with a time of the future: its listing, and when it was
                                   first seen with that

The first part is a copy of what the files run.json say. An entry counts as long as that file has not changed since, by
size, inode and times; otherwise it is read again. So the file may be removed or damaged at any time: without the second
part a batch waits `inbox.settle_seconds` once more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from densitywatch.batches.results_folder import RUN, read_run
from densitywatch.errors import DataError
from densitywatch.files import read_json, write_whole
from densitywatch.text import as_text

NOTE = ".inbox.json"
SEEN = ""
"""The key of the second part; no batch has this name."""
MOST_NOTE = 256 << 20
"""Bytes of the file: half a million batches."""


class KnownListings:
    """The listings, within a `with` block that looks at every batch; at its end what has changed is kept."""

    def __init__(self, results: Path) -> None:
        """`results`: the folder of all results; it need not exist."""
        self._results, self._top = results, f"{results}{os.sep}"
        self._before, self._seen_before = _read(results / NOTE)
        self._now: dict[str, list[str]] = {}
        self._seen: dict[str, list[Any]] = {}

    def __enter__(self) -> KnownListings:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        # whoever may not write here looks at the files again next time
        changed = self._now != self._before or self._seen != self._seen_before
        if error is None and changed and self._results.is_dir():
            kept = self._now | ({SEEN: self._seen} if self._seen else {})
            with suppress(OSError, DataError):
                write_whole(self._results / NOTE, json.dumps(kept, separators=(",", ":")) + "\n")

    def of(self, source: str, folder_of: Callable[[], Path]) -> str | None:
        """The listing that the results of the batch `source` were made from; None where there are none.

        `folder_of`: finds its results folder; called where that is not known.
        """
        known = self._before.get(source)
        if known is not None and known[1] == _state(f"{self._top}{known[0]}{os.sep}{RUN}"):
            self._now[source] = known
            return known[2]
        folder = folder_of()
        state = _state(str(folder / RUN))  # before it is read: a file that changes in between is read again
        listing = read_run(folder).get("listing")
        if not isinstance(listing, str):
            return None
        if (
            state is not None
            and folder.parent == self._results
            and as_text(source + folder.name) == source + folder.name
        ):
            self._now[source] = [folder.name, state, listing]
        return listing

    def seen_since(self, source: str, listing: str, now: float) -> float:
        """When a look first found the batch `source` as it is now, by the clock of the looks; `now` where none did."""
        before = self._seen_before.get(as_text(source))
        since = now
        if before is not None and before[0] == listing and before[1] <= now:  # the clock may have been set back since
            since = before[1]
        self._seen[as_text(source)] = [listing, since]
        return since


def _state(file: str) -> str | None:
    try:
        found = os.stat(file)  # noqa: PTH116 - a Path for each batch takes longer than its stat
    except (OSError, ValueError):
        return None
    return f"{found.st_size} {found.st_ino} {found.st_mtime_ns} {found.st_ctime_ns}"


def _read(file: Path) -> tuple[dict[str, list[str]], dict[str, list[Any]]]:
    try:
        found: Any = read_json(file, MOST_NOTE)
    except (FileNotFoundError, DataError):
        return {}, {}
    if not isinstance(found, dict):
        return {}, {}
    scored = {
        source: entry
        for source, entry in found.items()
        if isinstance(entry, list) and len(entry) == 3 and all(isinstance(part, str) for part in entry)
    }
    part = found.get(SEEN)
    seen = {
        source: entry
        for source, entry in (part.items() if isinstance(part, dict) else ())
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], int | float)
    }
    return scored, seen
