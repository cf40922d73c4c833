"""The rules that give images the names of their groups: pairs of an image's number and a name.

An image without a pair is alone: no group of it is known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta

from densitywatch.data.groups.likeness import Neighbours, alike_pairs, near_duplicates
from densitywatch.data.groups.union import union_of_images
from densitywatch.data.image_table import Table

Names = Iterator[tuple[int, str]]

TIME = "%Y:%m:%d %H:%M:%S"
"""How EXIF writes a time."""


def by_folder(table: Table) -> Names:
    """The folder that an image is in; none at the top of its source, whose name begins the path of joined sources."""
    for number, path, source in table.execute("SELECT number, plain(path), source FROM image"):
        folder = path.rpartition("/")[0]
        if folder and folder != source:
            yield number, folder


def by_pattern(table: Table, pattern: str) -> Names:
    """What the regular expression's one capture finds in the path without its extension."""
    compiled = re.compile(pattern)
    for number, path in table.execute("SELECT number, plain(path) FROM image"):
        found = compiled.search(without_extension(path))
        if found is not None and found.group(1):
            yield number, found.group(1)


def without_extension(path: str) -> str:
    """A path without the last extension of its file."""
    return re.sub(r"(?<=[^/])\.[^./]*$", "", path)


def by_time(table: Table, minutes: float) -> Names:
    """Blocks of EXIF time: a block begins with its first image and lasts `minutes`. Each source has its own."""
    before, begin = None, datetime.min
    timed = table.execute("SELECT number, source, taken FROM image WHERE taken != '' ORDER BY source, taken, number")
    for number, source, taken in timed:
        time = datetime.fromisoformat(taken)
        if source != before or time - begin >= timedelta(minutes=minutes):
            before, begin = source, time
        yield number, begin.strftime("%Y-%m-%d %H:%M:%S")


def taken(text: str) -> str:
    """EXIF's text as a time that sorts as text, YYYY-MM-DD HH:MM:SS; empty where it is none."""
    try:
        return datetime.strptime(text, TIME).isoformat(" ")
    except ValueError:
        return ""


def by_likeness(table: Table, near: Neighbours) -> Names:
    """Near-duplicates anywhere, and runs of nearly equal images in the name order; named after their first image.

    Runs are looked for only where neighbours are more often nearly equal than random pairs. Images up to WINDOW places
    apart are compared, so one frame that differs does not end a run.
    """
    joined = union_of_images(table)
    for one, other in near_duplicates(table):
        joined.join(one, other)
    if near.alike:
        for one, other in alike_pairs(table, near):
            joined.join(one, other)
    joined.write(table)
    yield from table.execute(
        """SELECT number, name FROM (
            SELECT number, min(plain(path)) OVER same AS name, count(*) OVER same AS size
            FROM image JOIN joined USING (number) WINDOW same AS (PARTITION BY first)
        ) WHERE size > 1"""
    )
