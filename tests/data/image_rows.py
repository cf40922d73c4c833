"""Rows of the table that `prepare` keeps on disk, for tests of what is done with them; the table is in memory here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from densitywatch.data.dataset import SPLITS, SplitName
from densitywatch.data.groups.likeness import Looks
from densitywatch.data.image_table import Image, Table, add_images, image_table
from densitywatch.data.splits import assign
from densitywatch.params import DataParams


class Placed(NamedTuple):
    """An image in its split."""

    path: str
    group: str
    sha256: str


@contextmanager
def table_of(images: Iterable[Image], looks: Looks | None = None) -> Iterator[Table]:
    """The table of images, numbered as they are given."""
    with image_table(None) as table:
        add_images(table, (image._replace(number=number) for number, image in enumerate(images)))
        if looks is not None:
            looks.write(table, 0)
        yield table


def assigned(
    images: Iterable[Image], data: DataParams, seed: int, *, by_groups: bool = False
) -> tuple[dict[SplitName, list[Placed]], list[dict[str, str]]]:
    """What `assign` makes of images: every split in its order, and what is dropped."""
    with table_of(images) as table:
        dropped = assign(table, data, seed, by_groups=by_groups)
        query = """SELECT placed.path, placed.group_name, sha256 FROM placed JOIN image USING (number)
            WHERE split = ? ORDER BY place"""
        return {name: [Placed(*row) for row in table.execute(query, (name,))] for name in SPLITS}, dropped
