"""`data.group`: the rule that params name, or for `auto` the first one that explains why neighbours look alike.

`auto` compares neighbours in the name order with random pairs. Where neighbours are nearly equal far more often, it
tries the folders, the names, the EXIF times and likeness itself, in this order. It takes the first rule after which
neighbours in different groups are no more alike than random pairs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from densitywatch.data.groups import rules
from densitywatch.data.groups.likeness import CLOSE, Looks, Neighbours, name_key, neighbours
from densitywatch.data.groups.rules import Known
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
    """The groups of N images."""

    setting: str | None
    """data.group of params.yaml."""
    rule: str | None
    """The rule that was used, as data.group would name it; None: the images are not grouped."""
    names: list[str]
    """(N,) names of groups; all empty without a rule, none empty with one."""
    order: list[int]
    """(N,) the place of each image in time, or in the order of the names where times are not used."""
    words: str
    """What was found and why, in one or two sentences."""
    warning: str = ""
    """One line where images are alike and no rule is in force."""


def grouped(setting: str | None, images: Sequence[Known], looks: Looks | None) -> Grouping:
    """The groups of `images` by `setting`. `looks`: None for built-in sources, which have no groups.

    Raises DataError when the rule finds no group at all.
    """
    if looks is None:
        return Grouping(setting, None, [""] * len(images), list(range(len(images))), "A built-in source has no groups.")
    strata = [(image.source, image.label) for image in images]
    near = neighbours(looks, [image.path for image in images], strata)
    if setting is None:
        warning = ""
        if near.alike:
            warning = (
                f"{near.share:.0%} of neighbours in name order are nearly equal ({CLOSE:.0%} of random pairs are), and"
                " data.group is not set: rates that are promised may not hold; try data.group: auto"
            )
        words = f"data.group is not set: every image counts by itself. {_likeness(near)}"
        return Grouping(None, None, [""] * len(images), _by_name(images), words, warning)
    if setting != "auto":
        names = _named(setting, images, looks, near)
        alone = sum(not name for name in names)
        if alone == len(images):
            raise DataError(f"data.group: {setting} finds no group in {len(images):,} images; {_advice(setting)}")
        words = f"data.group is {setting}: {_sizes(names)}. {_across(near, names)}"
        return _grouping(setting, setting, images, names, words)
    return _auto(images, looks, near)


def _auto(images: Sequence[Known], looks: Looks, near: Neighbours) -> Grouping:
    likeness = _likeness(near)
    if not near.alike:
        names = rules.by_likeness(images, looks, near)
        shared = sum(bool(name) for name in names) / len(names)
        if shared < DUPLICATED or not _usable(names):
            words = f"auto: {likeness} So the images are not grouped."
            return Grouping("auto", None, [""] * len(images), _by_name(images), words)
        words = f"auto: {likeness} But {shared:.0%} of the images have near-duplicates: {_sizes(names)}."
        return _grouping("auto", "near_duplicates", images, names, words)
    for rule, names in _candidates(images, looks, near):
        if _usable(names) and not near.alike_across(_each(names)):
            words = f"auto: {likeness} data.group: {rule} explains it: {_sizes(names)}. {_across(near, names)}"
            return _grouping("auto", rule, images, names, words)
    warning = (
        f"data.group: auto finds neighbours in name order alike ({likeness.rstrip('.').lower()}) and no rule that"
        " explains it: rates that are promised may not hold; set data.group to a rule of your own"
    )
    words = f"auto: {likeness} No rule explains it, so the images are not grouped."
    return Grouping("auto", None, [""] * len(images), _by_name(images), words, warning)


def _candidates(images: Sequence[Known], looks: Looks, near: Neighbours) -> Iterator[tuple[str, list[str]]]:
    folders = rules.by_folder(images)
    if len(set(folders)) > len({(image.source, image.label) for image in images}):  # finer than the labels
        yield "folder", folders
    for pattern in NAME_PATTERNS:
        yield pattern, rules.by_pattern(images, pattern)
    if sum(rules.taken(image.taken) is not None for image in images) >= TIMED * len(images):
        for minutes in MINUTES:
            yield f"exif:{minutes}", rules.by_time(images, minutes)
    yield "near_duplicates", rules.by_likeness(images, looks, near)


def _named(setting: str, images: Sequence[Known], looks: Looks, near: Neighbours) -> list[str]:
    if setting == "folder":
        return rules.by_folder(images)
    if setting.startswith("exif:"):
        return rules.by_time(images, float(setting.removeprefix("exif:")))
    if setting == "near_duplicates":
        return rules.by_likeness(images, looks, near)
    return rules.by_pattern(images, setting)


def _grouping(setting: str, rule: str, images: Sequence[Known], names: Sequence[str], words: str) -> Grouping:
    # two sources may use the same names; a group does not span them
    several = len({image.source for image in images}) > 1
    whole = [
        (f"{image.source}: {name}" if several else name) if name else image.path
        for image, name in zip(images, names, strict=True)
    ]
    order = _by_time(images) if rule.startswith("exif:") else _by_name(images)
    return Grouping(setting, rule, whole, order, words)


def _usable(names: Sequence[str]) -> bool:
    counts = Counter(name for name in names if name)
    groups = len(counts) + sum(not name for name in names)
    return groups >= FEWEST_GROUPS and max(counts.values(), default=1) <= LARGEST_SHARE * len(names)


def _by_name(images: Sequence[Known]) -> list[int]:
    return _places(sorted(range(len(images)), key=lambda index: (name_key(images[index].path), images[index].path)))


def _by_time(images: Sequence[Known]) -> list[int]:
    """Images without a time that can be read come first."""
    times = [rules.taken(image.taken) or datetime.min for image in images]
    return _places(sorted(range(len(images)), key=lambda index: (times[index], name_key(images[index].path))))


def _places(order: Sequence[int]) -> list[int]:
    places = [0] * len(order)
    for place, index in enumerate(order):
        places[index] = place
    return places


def _likeness(near: Neighbours) -> str:
    if math.isnan(near.limit):
        return "There are too few images to say whether neighbours in name order are alike."
    return f"{near.share:.0%} of neighbours in name order are nearly equal; of random pairs it is {CLOSE:.0%}."


def _across(near: Neighbours, names: Sequence[str]) -> str:
    if math.isnan(near.limit):
        return ""
    return f"Of neighbours in different groups {near.share_across(_each(names)):.0%} are nearly equal."


def _each(names: Sequence[str]) -> list[str]:
    """The names, and a different one for every image that has none."""
    return [name or f"{index}" for index, name in enumerate(names)]


def _sizes(names: Sequence[str]) -> str:
    counts = sorted(Counter(name for name in names if name).values())
    middle = counts[len(counts) // 2] if counts else 0
    found = f"{len(counts):,} groups, {middle:,} images in the middle one, {max(counts, default=0):,} in the largest"
    alone = sum(not name for name in names)
    return f"{found}; {alone:,} images are in none and count by themselves" if alone else found


def _advice(setting: str) -> str:
    if setting == "folder":
        return "put the images of each group into a folder of its own"
    if setting.startswith("exif:"):
        return "no image has an EXIF time; choose another rule"
    if setting == "near_duplicates":
        return "no image looks like another; set data.group: null"
    return "correct the pattern; it is searched in the path without its extension"
