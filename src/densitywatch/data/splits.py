"""Which split an image is in.

Nothing is drawn from a random generator: the place of an image follows from a hash of the seed and its pixels. So
neither the order nor the names of the files matter. Images with the same pixels, or of one group, stay in one split.
Where the source has parts, such images of several parts stay in the test part, or else in the validation part, since
published figures are about the test part; the others are left out and listed in dataset.json.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby, pairwise

from densitywatch.data.dataset import SPLITS, SplitName
from densitywatch.data.groups.union import union_of_images
from densitywatch.data.image_table import Table, one_value
from densitywatch.data.judged_draw import place_draw
from densitywatch.errors import DataError
from densitywatch.params import DataParams

OWN: tuple[SplitName, ...] = ("test", "validation", "calibration", "gate")
"""Splits that may be parts of the source. Images of a judged draw are of the last two (judged_draw.py)."""
LATER: tuple[SplitName, ...] = ("test", "calibration")
"""Splits that data.calibration_time: later takes from the end, the last one first."""
SCHEMA = (
    # images that stay together lie together
    """CREATE TABLE member (
        set_number INTEGER, sha256 TEXT, number INTEGER, path TEXT, part TEXT, label INTEGER, group_name TEXT,
        hash TEXT, marked INTEGER, place INTEGER, PRIMARY KEY (set_number, sha256, number)
    ) WITHOUT ROWID""",
    """CREATE TABLE image_set (
        set_number INTEGER PRIMARY KEY, size INTEGER, label INTEGER, path TEXT, hash TEXT, place INTEGER, own TEXT
    )""",
    "CREATE TABLE split_of (set_number INTEGER PRIMARY KEY, split TEXT)",
    "CREATE TABLE split_order (split TEXT, position INTEGER)",
    # images for training alone are kept where nothing of their set is in another split; a judged draw's come late
    """CREATE VIEW decided AS SELECT member.*, coalesce(own, split_of.split, 'train') AS split, own IS 'gate' AS late,
        CASE WHEN marked THEN coalesce(own, split_of.split, 'train') = 'train' ELSE own IS NULL OR own = part END
        AS kept
        FROM member LEFT JOIN image_set ON image_set.set_number = member.set_number
        LEFT JOIN split_of ON split_of.set_number = member.set_number""",
    """CREATE TABLE placed (
        place INTEGER PRIMARY KEY, split TEXT, number INTEGER, path TEXT, part TEXT, label INTEGER, group_name TEXT,
        set_number INTEGER
    )""",
)


def assign(table: Table, data: DataParams, seed: int, *, by_groups: bool = False) -> list[dict[str, str]]:
    """Every image in one split, in the table `placed`, or among the dropped (path, reason).

    Images of one set get one group's name.

    `by_groups`: the shares are shares of the groups, not of the images. Then the groups of every split are a random
    choice, spread evenly over the labels. Counted in images, a large group would be more likely than a small one to be
    the one that fills a split.
    A split's order mixes the labels evenly, so its first rows are a fair sample of the whole. Images that are for
    training alone (training_only.py) count in no share. Where a judged draw calibrates (judged_draw.py), the images
    that would have calibrated are trained on. Every other split is as it was; the draw's part for the gate comes after
    the others in that split.
    """
    for statement in SCHEMA:
        table.execute(statement)
    table.executemany("INSERT INTO split_order VALUES (?, ?)", zip(SPLITS, range(len(SPLITS)), strict=True))
    _together(table, seed)
    place_draw(table, seed)
    _summarize_sets(table, seed)
    own = {name for (name,) in table.execute("SELECT DISTINCT own FROM image_set")}
    images, sets = table.execute("SELECT coalesce(sum(size), 0), count(*) FROM image_set WHERE own IS NULL").fetchone()
    shares: dict[SplitName, float] = {
        "test": data.test, "validation": data.validation, "calibration": data.calibration, "gate": data.gate
    }  # fmt: skip
    wanted = {
        name: max(1, round(share * (sets if by_groups else images)))
        for name, share in shares.items()
        if name not in own or name in ("calibration", "gate")  # a judged draw changes no other split
    }
    names: dict[SplitName, SplitName] = {"calibration": "train"} if "calibration" in own else {}
    if data.calibration_time == "later":
        # the latest ones for test, those before them for calibration
        latest = table.execute("SELECT set_number, size FROM image_set WHERE own IS NULL ORDER BY place DESC")
        for name in LATER:
            if name in wanted:
                _fill(table, names.get(name, name), latest, wanted.pop(name), by_groups=by_groups)
    mixed = _mixed_sets(table)
    for name, target in wanted.items():
        _fill(table, names.get(name, name), mixed, target, by_groups=by_groups)
    _place(table)
    there = {name for (name,) in table.execute("SELECT DISTINCT split FROM placed")}
    if empty := [name for name in SPLITS if name not in there]:
        usable = one_value(table, "SELECT count(*) FROM member WHERE NOT marked")
        differ = f"{sets} groups of them" if by_groups else f"{sets} that differ"
        raise DataError(
            f"{usable} usable images ({differ}) are too few: none is left for {', '.join(empty)}; add images"
        )
    return list(_dropped(table))


def _together(table: Table, seed: int) -> None:
    """Fill the table `member`: sets of images with equal pixels or an equal group.

    A set that joins several groups takes the first one's name.
    """
    joined = union_of_images(table)
    for query in (
        "SELECT sha256, number FROM image ORDER BY sha256",
        """SELECT coalesce(name, group_name) AS its, image.number FROM image
        LEFT JOIN named ON named.number = image.number WHERE its != '' ORDER BY its""",
    ):
        for (key, one), (next_key, other) in pairwise(table.execute(query)):
            if key == next_key:
                joined.join(one, other)
    joined.write(table)
    table.create_function("hash_of", 1, lambda text: hash_of(seed, text), deterministic=True)
    table.execute(
        """INSERT INTO member SELECT
            first, sha256, image.number, path, part, label,
            coalesce(min(nullif(coalesce(name, group_name), '')) OVER (PARTITION BY first), ''),
            hash_of(sha256), for_training_only(path), coalesce(in_order.place, image.number)
        FROM image JOIN joined ON joined.number = image.number
        LEFT JOIN named ON named.number = image.number LEFT JOIN in_order ON in_order.number = image.number
        ORDER BY first, sha256, image.number"""
    )


def _summarize_sets(table: Table, seed: int) -> None:
    """Fill the table `image_set`: the sets, without the images that are for training alone.

    `own`: the part of the source whose split the set is in, the first one of OWN.
    """
    table.execute(
        """INSERT INTO image_set SELECT
            set_number, count(*), min(label), min(path),
            CASE WHEN min(sha256) = max(sha256) THEN min(hash) END, min(place), NULL
        FROM member WHERE NOT marked GROUP BY set_number"""
    )
    several = table.execute(
        """SELECT DISTINCT set_number, sha256 FROM member
        WHERE NOT marked AND set_number IN (SELECT set_number FROM image_set WHERE hash IS NULL) ORDER BY 1, 2"""
    )
    # of all its pixels: the least of the images' hashes would be smaller in larger groups and put them first
    table.executemany(
        "UPDATE image_set SET hash = ? WHERE set_number = ?",
        (
            (_hash_of_all(seed, (sha256 for _, sha256 in members)), number)
            for number, members in groupby(several, key=lambda row: row[0])
        ),
    )
    for part in reversed(OWN):
        table.execute(
            """UPDATE image_set SET own = ?
            WHERE set_number IN (SELECT set_number FROM member WHERE part = ? AND NOT marked)""",
            (part, part),
        )


def _mixed_sets(table: Table) -> Iterator[tuple[int, int]]:
    """Number and size of the sets that are in no split, in an order in which every stretch has the labels in their
    overall shares.

    The order follows from the pixels (and, between equal images, from the paths), not from the order given.
    """
    return table.execute(
        """SELECT set_number, size FROM (
            SELECT *, (row_number() OVER ranked - 0.5) / count(*) OVER (PARTITION BY label) AS share
            FROM image_set WHERE own IS NULL AND set_number NOT IN (SELECT set_number FROM split_of)
            WINDOW ranked AS (PARTITION BY label ORDER BY hash, path)
        ) ORDER BY share, hash, path"""
    )


def _fill(table: Table, name: SplitName, sets: Iterator[tuple[int, int]], target: int, *, by_groups: bool) -> None:
    """Put the next of `sets` (number and size) into a split until it has `target` groups or images."""

    def taken() -> Iterator[tuple[int, str]]:
        count = 0
        while count < target and (found := next(sets, None)) is not None:
            number, size = found
            count += 1 if by_groups else size
            yield number, name

    table.executemany("INSERT INTO split_of VALUES (?, ?)", taken())


def _place(table: Table) -> None:
    """Fill the table `placed`: the images that are kept, each split in an order as that of `_mixed_sets`.

    Images of a judged draw come after the others of the gate.
    """
    table.execute(
        """INSERT INTO placed (split, number, path, part, label, group_name, set_number)
        SELECT split, number, path, part, label, group_name, set_number FROM (
            SELECT *, (row_number() OVER ranked - 0.5) / count(*) OVER (PARTITION BY split, late, label) AS share
            FROM decided WHERE kept
            WINDOW ranked AS (PARTITION BY split, late, label ORDER BY hash, path, number)
        ) JOIN split_order USING (split)
        ORDER BY position, late, share, hash, path, number"""
    )


def _dropped(table: Table) -> Iterator[dict[str, str]]:
    """Path and reason of the images that an image of another split repeats, or shares a group with.

    Of other parts than their set, and of those for training alone, which would show the models an image that they are
    measured on. All are listed in dataset.json, so they are in memory in any case.
    """

    @cache
    def kept(query: str, *key: object) -> str | None:
        found = table.execute(f"{query} AND kept AND NOT marked ORDER BY ? * number LIMIT 1", key).fetchone()
        return None if found is None else str(found[0])

    rows = table.execute(
        "SELECT path, set_number, sha256, split, marked FROM decided WHERE NOT kept ORDER BY path, marked, number"
    )
    for path, number, sha256, split, marked in rows:
        order = -1 if marked else 1
        same = kept("SELECT path FROM decided WHERE set_number = ? AND sha256 = ?", number, sha256, order)
        if same is not None:
            yield {"path": path, "reason": f"the same pixels as {same} of the {split} part"}
        else:
            other = kept("SELECT path FROM decided WHERE set_number = ?", number, order)
            yield {"path": path, "reason": f"of one group with {other} of the {split} part"}


def dropped_line(dropped: Sequence[dict[str, str]]) -> str:
    """One clause: how many images are also in the test part, and in any other, or are of a group that is."""
    clauses = []
    for start, verb in (("the same pixels", "are also in"), ("of one group", "are of a group that is also in")):
        reasons = [item["reason"] for item in dropped if item["reason"].startswith(start)]
        parts = Counter(reason.rpartition(" of the ")[2] for reason in reasons)
        clauses += [f"{count} images {verb} the {part}" for part, count in parts.items()]
    return " and ".join(clauses)


def hash_of(seed: int, text: str) -> str:
    """Hexadecimal sha256 of the seed and a text."""
    return _hash_of_all(seed, (text,))


def _hash_of_all(seed: int, texts: Iterable[str]) -> str:
    """The same of texts with commas between."""
    digest, before = hashlib.sha256(), f"{seed}:"
    for text in texts:
        digest.update(f"{before}{text}".encode())
        before = ","
    return digest.hexdigest()
