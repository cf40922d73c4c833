"""The batches over time: one line a scored batch, in a file that only grows.

    <inbox.results>/.batches.jsonl    one JSON object a line; of several lines of a results folder the last one counts,
                                      and the first one is its place
    <inbox.results>/.batches.lock     held while that file or the page made of it changes

The page over time and the metrics are made of this table alone, so a new batch costs next to nothing however many came
before it: no summary.json of an earlier batch is opened. The table is a copy. Results without a line (of an older
version, or after a loss of power) get one from their summary.json, and a line that is damaged is left out.

The order of the lines is that of the scoring. Times are shown, and give only results without a line their place: by its
time a batch that was scored while the clock was ahead would stay the newest until that date.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from densitywatch.batches.results_folder import SUMMARY, Count, Share, read_summary

TABLE = ".batches.jsonl"
LOCK = ".batches.lock"
MOST_TABLE = 1 << 30
"""Bytes of the table that are read: millions of batches."""

Name = Annotated[str, Field(max_length=5000)]


class Row(BaseModel):
    """What is known of a scored batch."""

    model_config = ConfigDict(frozen=True)

    folder: Name
    """The name of its results folder, next to the table."""
    batch: Name
    """The source, as the results name it."""
    time: Annotated[FiniteFloat, Field(ge=0, le=1e11)]
    """When it was scored for the first time, in seconds since 1970."""
    files: Count
    scored: Count
    quarantined: Count
    outliers: Count
    drift_p_value: Share
    drift_evidence: Annotated[FiniteFloat, Field(ge=0)] | None = None
    drift_alarm: bool | None = None
    drift_alarm_batch: Name | None = None
    drift_since: Name | None = None
    drift_moved: Name | None = None
    seconds: Annotated[FiniteFloat, Field(ge=0)] | None = None
    """How long the scoring took; None where that is not known."""

    @property
    def flagged_share(self) -> float:
        """The share of the scored images that are flagged."""
        return self.outliers / self.scored if self.scored else 0.0

    @property
    def quarantined_share(self) -> float:
        """The share of the files that could not be used."""
        return self.quarantined / self.files if self.files else 0.0


def row_of(folder: Path, summary: Mapping[str, Any], *, time: float, seconds: float | None = None) -> Row:
    """The row of the results in `folder`."""
    known = {key: summary.get(key) for key in Row.model_fields if key in summary}
    return Row.model_validate({**known, "folder": folder.name, "time": time, "seconds": seconds})


@contextmanager
def table_lock(results: Path) -> Iterator[None]:
    """Let one process at a time change the table in `results` and what is made of it."""
    with (results / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read_table(results: Path) -> list[Row]:
    """Every batch with a line or with results in the folder `results`, in the order in which they were scored first.

    A batch whose results were removed keeps its row.
    """
    rows, without = _parts(results)
    return _merged(list(rows.values()), without)


def _merged(rows: list[Row], without: list[Row]) -> list[Row]:
    """Both, each in its own order; one `without` a line comes after the last row that is not later than it."""
    merged = []
    while rows or without:
        last = without if without and (not rows or rows[-1].time <= without[-1].time) else rows
        merged.append(last.pop())
    return merged[::-1]


def add_row(results: Path, new: Row) -> list[Row]:
    """The table with `new`, which is also written to it; use inside `table_lock`.

    A batch that is scored again keeps its place and its time, and its seconds where the results were left as they are.
    """
    rows, without = _parts(results)
    # results are there before their line is, so a new batch is one `without` as well
    old = rows.get(new.folder) or next((row for row in without if row.folder == new.folder), None)
    if old is not None:
        new = new.model_copy(update={"time": old.time, "seconds": old.seconds if new.seconds is None else new.seconds})
        if old == new and (results / TABLE).is_file():
            return _merged(list(rows.values()), without)
    text = new.model_dump_json(exclude_none=True) + "\n"
    with (results / TABLE).open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a process was killed in the middle of a line
                text = "\n" + text
        file.write(text.encode())
    rows[new.folder] = new
    return _merged(list(rows.values()), [row for row in without if row.folder != new.folder])


def _parts(results: Path) -> tuple[dict[str, Row], list[Row]]:
    """The batches with a line, in the order of their first lines; and those with results alone, by their times."""
    rows = _read(results / TABLE)
    with os.scandir(results) as found:
        unknown = [entry.name for entry in found if entry.name not in rows and not entry.name.startswith(".")]
    without = []
    for name in unknown:
        folder = results / name
        if (folder / SUMMARY).is_file() and (summary := read_summary(folder)) is not None:
            without.append(row_of(folder, summary, time=(folder / SUMMARY).stat().st_mtime))
    return rows, sorted(without, key=lambda row: row.time)


def _read(file: Path) -> dict[str, Row]:
    """The last whole line of each results folder."""
    try:
        with file.open("rb") as opened:
            lines = opened.read(MOST_TABLE).split(b"\n")
    except (FileNotFoundError, IsADirectoryError):
        return {}
    rows: dict[str, Row] = {}
    read = Row.__pydantic_validator__.validate_json
    for line in lines:
        try:
            row = read(line, strict=True) if line else None
        except ValidationError:
            continue
        if row is not None and row.folder and row.folder[0] != "." and "/" not in row.folder and "\0" not in row.folder:
            rows[row.folder] = row
    return rows
