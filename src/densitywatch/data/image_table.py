"""The table of images that `prepare` keeps on disk while it works, so that its memory does not grow with the images.

It is a SQLite file in the folder that is being written, and is gone before the dataset is whole. Sorting, ranking and
grouping happen in SQL; what SQL sorts by, as hashes and names, comes from Python. Names of files are from outside: they
go into statements as parameters alone.

    found       images of the source, before they are decoded             prepare.py
    image       those that were decoded                                   prepare.py
    look        what is compared of them                                  groups/likeness.py
    by_name     their order by name, within a source and label            groups/likeness.py
    named       the images that data.group finds a group for              groups/choose.py
    in_order    their order in time or by name, where it is asked for     groups/choose.py
    joined      sets of images that stay together                         groups/union.py
    member      images with their sets                                    splits.py
    image_set   the sets                                                  splits.py
    split_of    the sets that shares of the images were filled with       splits.py
    placed      images in the order of the manifest                       splits.py
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from densitywatch.data.training_only import for_training_only, without_mark

Table = sqlite3.Connection

CACHE = 8 << 10
"""KiB of the file, and of what is being sorted, that are kept in memory."""
SETTINGS = (
    f"PRAGMA cache_size = -{CACHE}",
    "PRAGMA temp_store = FILE",  # what is sorted goes to files too
    "PRAGMA mmap_size = 0",  # pages of a mapped file count as memory
    # the file is removed after an error too, so nothing of it has to be safe
    "PRAGMA journal_mode = OFF",
    "PRAGMA synchronous = OFF",
)
SCHEMA = (
    """CREATE TABLE found (
        number INTEGER PRIMARY KEY, path TEXT, part TEXT, label INTEGER, group_name TEXT, source TEXT
    )""",
    """CREATE TABLE image (
        number INTEGER PRIMARY KEY, path TEXT, part TEXT, label INTEGER, group_name TEXT, source TEXT, sha256 TEXT,
        width INTEGER, height INTEGER, mode TEXT, taken TEXT, mean REAL, std REAL, low INTEGER, high INTEGER
    )""",
    "CREATE TABLE look (number INTEGER PRIMARY KEY, coarse BLOB, hash INTEGER)",
    "CREATE TABLE by_name (place INTEGER PRIMARY KEY, number INTEGER)",
    "CREATE TABLE named (number INTEGER PRIMARY KEY, name TEXT)",
    "CREATE TABLE in_order (number INTEGER PRIMARY KEY, place INTEGER)",
    "CREATE TABLE joined (number INTEGER PRIMARY KEY, first INTEGER)",
)


class Image(NamedTuple):
    """One row of `image`: an image of the source that was decoded."""

    number: int
    """Its row in the scratch file of decoded pixels: 0, 1, 2, ..."""
    path: str
    part: str = ""
    label: int = -1
    group_name: str = ""
    source: str = ""
    sha256: str = ""
    """Of its pixels."""
    width: int = 0
    height: int = 0
    mode: str = ""
    taken: str = ""
    """Its EXIF time as YYYY-MM-DD HH:MM:SS, or empty."""
    mean: float = 0.0
    std: float = 0.0
    low: int = 0
    high: int = 0


@contextmanager
def image_table(file: Path | None) -> Iterator[Table]:
    """A new table of images in `file`, which is removed at the end; None: in memory."""
    with on_disk(file) as table:
        for statement in SCHEMA:
            table.execute(statement)
        # names say the same of scenes, folders and order with and without the mark
        table.create_function("plain", 1, without_mark, deterministic=True)
        table.create_function("for_training_only", 1, for_training_only, deterministic=True)
        yield table


@contextmanager
def on_disk(file: Path | None) -> Iterator[Table]:
    """A new SQLite file for what does not fit into memory; it is removed at the end. None: in memory.

    A transaction is open: nothing is sure to be in the file before COMMIT. A disk that is full raises
    sqlite3.OperationalError, which files.full_disk_as_error knows.
    """
    # no lock is taken: nobody else opens the file, and not every network disk has locks
    address = ":memory:" if file is None else f"{file.absolute().as_uri()}?nolock=1"
    try:
        with closing(sqlite3.connect(address, uri=True, isolation_level=None)) as table:
            for setting in SETTINGS:
                table.execute(setting)
            table.execute("BEGIN")  # one transaction: none that ends writes its pages at once
            yield table
    finally:
        if file is not None:
            file.unlink(missing_ok=True)


def add_images(table: Table, images: Iterable[Image]) -> None:
    """Write rows into `image`."""
    table.executemany("INSERT INTO image VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", images)


def one_value(table: Table, query: str, *parameters: object) -> Any:
    """The first column of the first row of a query."""
    return table.execute(query, parameters).fetchone()[0]
