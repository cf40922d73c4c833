"""`data.group`: the rule that params name, or for `auto` the first one that explains why neighbours look alike.

`auto` compares neighbours in the name order with random pairs. Where neighbours are nearly equal far more often, it
tries the folders, the names, the EXIF times and likeness itself, in this order. It takes the first rule after which
neighbours in different groups are no more alike than random pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from densitywatch.arrays import Numbers
from densitywatch.data.groups import rules
from densitywatch.data.groups.likeness import CLOSE, Neighbours, neighbours
from densitywatch.data.image_table import Table, one_value
from densitywatch.errors import DataError

FEWEST_GROUPS = 20
LARGEST_SHARE = 0.2
"""`auto` takes no rule with fewer groups, or with a group that holds more of the images."""
NAME_PATTERNS = (r"^(.*\d\D+)\d+\D*$", r"^(.*\d\D+)\d+\D+\d+\D*$")
"""A name up to its last number, and up to the last but one; what is before must hold a number too."""
MINUTES = (1, 5, 15, 60, 240, 1440)
TIMED = 0.95
"""`auto` looks at EXIF times when at least this share of the images has one."""
DUPLICATED = 0.05
"""`auto` groups near-duplicates when at least this share of the images has one, also where neighbours differ."""


@dataclass(frozen=True)
class Grouping:
    """How the images are grouped; the table `named` has the names of their groups."""

    setting: str | None
    """data.group of params.yaml."""
    rule: str | None
    """The rule that was used, as data.group would name it; None: the images are not grouped."""
    words: str
    """What was found and why, in one or two sentences."""
    warning: str = ""
    """One line where images are alike and no rule is in force."""


def grouped(setting: str | None, table: Table) -> Grouping:
    """Group the images by `setting`: a name for every image where a rule is in force, and none elsewhere.

    Raises DataError when the rule finds no group at all.
    """
    near = neighbours(table)
    if setting is None:
        warning = ""
        if near.alike:
            warning = (
                f"{near.share:.0%} of neighbours in name order are nearly equal ({CLOSE:.0%} of random pairs are), and"
                " data.group is not set: rates that are promised may not hold; try data.group: auto"
            )
        return Grouping(None, None, f"data.group is not set: every image counts by itself. {_likeness(near)}", warning)
    if setting == "auto":
        return _auto(table, near)
    _name(table, _by(setting, table, near))
    if one_value(table, "SELECT count(*) FROM named") == 0:
        count = one_value(table, "SELECT count(*) FROM image")
        raise DataError(f"data.group: {setting} finds no group in {count:,} images; {_advice(setting)}")
    words = f"data.group is {setting}: {_sizes(table)}. {_across(near, table)}"
    return _grouping(setting, setting, table, words)


def _auto(table: Table, near: Neighbours) -> Grouping:
    likeness = _likeness(near)
    if not near.alike:
        _name(table, rules.by_likeness(table, near))
        shared = one_value(table, "SELECT count(*) FROM named") / one_value(table, "SELECT count(*) FROM image")
        if shared < DUPLICATED or not _usable(table):
            _name(table, iter(()))
            return Grouping("auto", None, f"auto: {likeness} So the images are not grouped.")
        words = f"auto: {likeness} But {shared:.0%} of the images have near-duplicates: {_sizes(table)}."
        return _grouping("auto", "near_duplicates", table, words)
    for rule in _candidates(table):
        _name(table, _by(rule, table, near))
        if rule == "folder" and not _finer_than_labels(table):
            continue
        if _usable(table) and not near.alike_across(table):
            words = f"auto: {likeness} data.group: {rule} explains it: {_sizes(table)}. {_across(near, table)}"
            return _grouping("auto", rule, table, words)
    _name(table, iter(()))
    warning = (
        f"data.group: auto finds neighbours in name order alike ({likeness.rstrip('.').lower()}) and no rule that"
        " explains it: rates that are promised may not hold; set data.group to a rule of your own"
    )
    return Grouping("auto", None, f"auto: {likeness} No rule explains it, so the images are not grouped.", warning)


def _candidates(table: Table) -> Iterator[str]:
    yield "folder"
    yield from NAME_PATTERNS
    images, timed = table.execute("SELECT count(*), sum(taken != '') FROM image").fetchone()
    if timed >= TIMED * images:
        yield from (f"exif:{minutes}" for minutes in MINUTES)
    yield "near_duplicates"


def _finer_than_labels(table: Table) -> bool:
    folders = one_value(
        table, "SELECT count(DISTINCT coalesce(name, '')) FROM image LEFT JOIN named ON named.number = image.number"
    )
    labels = one_value(table, "SELECT count(*) FROM (SELECT DISTINCT source, label FROM image)")
    return bool(folders > labels)


def _by(rule: str, table: Table, near: Neighbours) -> rules.Names:
    if rule == "folder":
        return rules.by_folder(table)
    if rule.startswith("exif:"):
        return rules.by_time(table, float(rule.removeprefix("exif:")))
    if rule == "near_duplicates":
        return rules.by_likeness(table, near)
    return rules.by_pattern(table, rule)


def _name(table: Table, names: rules.Names) -> None:
    """These names in the table `named`, and no others."""
    table.execute("DELETE FROM named")
    table.executemany("INSERT INTO named VALUES (?, ?)", names)


def _grouping(setting: str, rule: str, table: Table, words: str) -> Grouping:
    """Make the rule's names those of the groups: an image that has none is a group by itself."""
    # two sources may use the same names; a group does not span them
    if one_value(table, "SELECT count(DISTINCT source) FROM image") > 1:
        table.execute(
            "UPDATE named SET name = (SELECT source FROM image WHERE image.number = named.number) || ': ' || name"
        )
    table.execute(
        "INSERT INTO named SELECT number, plain(path) FROM image WHERE number NOT IN (SELECT number FROM named)"
    )
    return Grouping(setting, rule, words)


def put_in_order(table: Table, rule: str | None) -> None:
    """Fill the table `in_order`: by time where the rule goes by times, else by name.

    Images without a time that can be read come first.
    """
    table.execute(
        """INSERT INTO in_order SELECT number, row_number() OVER (
            ORDER BY CASE WHEN ? THEN taken ELSE '' END, name_key(plain(path)), plain(path), number
        ) FROM image""",
        (rule is not None and rule.startswith("exif:"),),
    )


def _usable(table: Table) -> bool:
    sizes = _group_sizes(table)
    images = one_value(table, "SELECT count(*) FROM image")
    groups = len(sizes) + images - int(sizes.sum())
    largest = int(sizes[-1]) if len(sizes) else 1
    return bool(groups >= FEWEST_GROUPS and largest <= LARGEST_SHARE * images)


def _group_sizes(table: Table) -> Numbers:
    """Number of images in each group, ascending."""
    counted = table.execute("SELECT count(*) AS size FROM named GROUP BY name ORDER BY size")
    return np.fromiter((size for (size,) in counted), dtype=np.int64)


def _likeness(near: Neighbours) -> str:
    if math.isnan(near.limit):
        return "There are too few images to say whether neighbours in name order are alike."
    return f"{near.share:.0%} of neighbours in name order are nearly equal; of random pairs it is {CLOSE:.0%}."


def _across(near: Neighbours, table: Table) -> str:
    if math.isnan(near.limit):
        return ""
    return f"Of neighbours in different groups {near.share_across(table):.0%} are nearly equal."


def _sizes(table: Table) -> str:
    sizes = _group_sizes(table)
    middle, largest = (int(sizes[len(sizes) // 2]), int(sizes[-1])) if len(sizes) else (0, 0)
    found = f"{len(sizes):,} groups, {middle:,} images in the middle one, {largest:,} in the largest"
    alone = one_value(table, "SELECT count(*) FROM image") - int(sizes.sum())
    return f"{found}; {alone:,} images are in none and count by themselves" if alone else found


def _advice(setting: str) -> str:
    if setting == "folder":
        return "put the images of each group into a folder of its own"
    if setting.startswith("exif:"):
        return "no image has an EXIF time; choose another rule"
    if setting == "near_duplicates":
        return "no image looks like another; set data.group: null"
    return "correct the pattern; it is searched in the path without its extension"
