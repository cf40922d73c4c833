"""Which split an image is in.

Nothing is drawn from a random generator: the place of an image follows from a hash of the seed and its pixels. So
neither the order nor the names of the files matter. Images with the same pixels, or of one group, stay in one split.
Where the source has parts, such images of several parts stay in the test part, or else in the validation part, since
published figures are about the test part; the others are left out and listed in dataset.json.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from densitywatch.data.dataset import SPLITS, SplitName
from densitywatch.data.groups.union import Union
from densitywatch.data.judged_draw import place_draw
from densitywatch.data.raw import RawImage
from densitywatch.data.training_only import add_to_training, set_apart
from densitywatch.errors import DataError
from densitywatch.params import DataParams

OWN: tuple[SplitName, ...] = ("test", "validation", "calibration", "gate")
"""Splits that may be parts of the source. Images of a judged draw are of the last two (judged_draw.py)."""
LATER: tuple[SplitName, ...] = ("test", "calibration")
"""Splits that data.calibration_time: later takes from the end, the last one first."""


@dataclass(slots=True)
class Row:
    """One manifest row; `source` is its row in the scratch file of decoded pixels."""

    image: RawImage
    source: int
    width: int
    height: int
    mode: str
    sha256: str
    mean: float = 0.0
    std: float = 0.0
    min: int = 0
    max: int = 0
    taken: str = ""
    """Its EXIF time, or empty."""
    group: str = ""
    """Rows of one group stay in one split; empty: alone."""
    order: int = 0
    """Its place in time or in the order of the names, which data.calibration_time: later goes by."""

    def __post_init__(self) -> None:
        self.group = self.group or self.image.group


def assign(
    rows: Sequence[Row], data: DataParams, seed: int, *, by_groups: bool = False
) -> tuple[dict[SplitName, list[Row]], list[dict[str, str]]]:
    """Every row in one split, or among the dropped (path, reason). Rows of one set get one group's name.

    `by_groups`: the shares are shares of the groups, not of the images. Then the groups of every split are a random
    choice, spread evenly over the labels. Counted in images, a large group would be more likely than a small one to be
    the one that fills a split.
    A split's order mixes the labels evenly, so its first rows are a fair sample of the whole. Images that are for
    training alone (training_only.py) count in no share. Where a judged draw calibrates (judged_draw.py), the images
    that would have calibrated are trained on. Every other split is as it was; the draw's part for the gate comes after
    the others in that split.
    """
    splits: dict[SplitName, list[Row]] = {name: [] for name in SPLITS}
    dropped: list[dict[str, str]] = []
    free: list[list[Row]] = []
    sets = _together(rows)
    place_draw(sets, seed)
    usable, marked = set_apart(rows)
    for members in filter(None, (set_apart(members)[0] for members in sets)):
        part = next((name for name in OWN if any(row.image.part == name for row in members)), None)
        if part is None:
            free.append(members)
            continue
        kept = [row for row in members if row.image.part == part]
        splits[part] += kept
        dropped += [_dropped(row, kept, part) for row in members if row.image.part != part]
    judged, splits["gate"] = splits["gate"], []
    shares: dict[SplitName, float] = {
        "test": data.test, "validation": data.validation, "calibration": data.calibration, "gate": data.gate
    }  # fmt: skip
    total = sum(1 if by_groups else len(members) for members in free)
    replaced: list[Row] = []
    filled = splits | {"calibration": replaced if splits["calibration"] else splits["calibration"]}
    wanted = {name: max(1, round(share * total)) for name, share in shares.items() if not filled[name]}
    if data.calibration_time == "later":
        # the latest ones for test, those before them for calibration
        free.sort(key=lambda members: min((row.order, row.image.path) for row in members), reverse=True)
        for name in LATER:
            if name in wanted:
                free = _fill(filled[name], free, wanted.pop(name), by_groups=by_groups)
    rest = _mixed(free, seed)
    for name, target in wanted.items():
        rest = _fill(filled[name], rest, target, by_groups=by_groups)
    splits["train"] = replaced + [row for members in rest for row in members]
    others: dict[str, list[Row]] = {name: splits[name] for name in SPLITS if name != "train"}
    others["gate"] = splits["gate"] + judged
    dropped += add_to_training(marked, splits["train"], others)
    empty = [name for name in SPLITS if not splits[name]]
    if empty:
        differ = f"{len(free)} groups of them" if by_groups else f"{len(free)} that differ"
        raise DataError(
            f"{len(usable)} usable images ({differ}) are too few: none is left for {', '.join(empty)}; add images"
        )
    dropped.sort(key=lambda item: item["path"])
    ordered = {name: _rows_mixed(split, seed) for name, split in splits.items()}
    ordered["gate"] += _rows_mixed(judged, seed)
    return ordered, dropped


def _fill(split: list[Row], sets: list[list[Row]], target: int, *, by_groups: bool) -> list[list[Row]]:
    """Put the first `sets` into `split` until it has `target` groups or images; returns the sets that are left."""
    position = 0
    while position < len(sets) and (position if by_groups else len(split)) < target:
        split += sets[position]
        position += 1
    return sets[position:]


def _dropped(row: Row, kept: Sequence[Row], part: str) -> dict[str, str]:
    same = next((other for other in kept if other.sha256 == row.sha256), None)
    if same is not None:
        return {"path": row.image.path, "reason": f"the same pixels as {same.image.path} of the {part} part"}
    return {"path": row.image.path, "reason": f"of one group with {kept[0].image.path} of the {part} part"}


def dropped_line(dropped: Sequence[dict[str, str]]) -> str:
    """One clause: how many images are also in the test part, and in any other, or are of a group that is."""
    clauses = []
    for start, verb in (("the same pixels", "are also in"), ("of one group", "are of a group that is also in")):
        reasons = [item["reason"] for item in dropped if item["reason"].startswith(start)]
        parts = Counter(reason.rpartition(" of the ")[2] for reason in reasons)
        clauses += [f"{count} images {verb} the {part}" for part, count in parts.items()]
    return " and ".join(clauses)


def _mixed(groups: Sequence[list[Row]], seed: int) -> list[list[Row]]:
    """The groups in an order in which every stretch has the labels in their overall shares.

    The order follows from the pixels (and, between equal images, from the paths), not from the order given.
    """
    by_label: dict[int, list[tuple[tuple[str, str], list[Row]]]] = defaultdict(list)
    for group in groups:
        # of all its pixels: the least of the images' hashes would be smaller in larger groups and put them first
        key = (hash_of(seed, ",".join(sorted({row.sha256 for row in group}))), min(row.image.path for row in group))
        by_label[min(row.image.label for row in group)].append((key, group))
    placed = [
        ((turn + 0.5) / len(members), key, group)
        for members in by_label.values()
        for turn, (key, group) in enumerate(sorted(members, key=lambda member: member[0]))
    ]
    return [group for _, _, group in sorted(placed, key=lambda item: item[:2])]


def _rows_mixed(rows: Sequence[Row], seed: int) -> list[Row]:
    return [row for (row,) in _mixed([[row] for row in rows], seed)]


def _together(rows: Sequence[Row]) -> list[list[Row]]:
    """Sets of rows with equal pixels or an equal group; a set that joins several groups takes the first one's name."""
    joined = Union(len(rows))
    first: dict[str, int] = {}
    for index, row in enumerate(rows):
        for key in (row.sha256, f"group {row.group}") if row.group else (row.sha256,):
            joined.join(index, first.setdefault(key, index))
    sets = [[rows[index] for index in members] for members in joined.sets()]
    for members in sets:
        name = min((row.group for row in members if row.group), default="")
        for row in members:
            row.group = name
    return sets


def hash_of(seed: int, text: str) -> str:
    """Hexadecimal sha256 of the seed and a text."""
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()
