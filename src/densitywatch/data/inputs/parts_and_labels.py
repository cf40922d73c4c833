"""The part (train, validation, test) and the label of images, from their places.

A place is the path below the address, without the names of archives. One folder around everything is ignored. Top
folders with the name of a part are parts. Below them the first folder is the label. A few images that do not fit are
left out, each with its reason; more of them are an error, because then the rule itself is in doubt.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from densitywatch.errors import DataError

PARTS = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Names of top folders that are parts, in lower case, and the parts' names here."""
HELD_OUT = ("validation", "test")
FEW = 4
"""Of fewer images than this none may be left out."""
SHOWN = 5
MAX_LABEL = 100
INVISIBLE = frozenset("\u200c\u200d\ufe0e\ufe0f") | {chr(code) for code in range(0xE0020, 0xE0080)}
"""Joiners, selectors and tags inside emoji and some scripts: allowed in a label, and ignored when two are compared."""


@dataclass
class Arrangement:
    """For each place its part (empty: none) and its label; the places left out, with reasons; remarks for the user."""

    counts: Sequence[int]
    """Number of images at each place."""
    parts: list[str]
    labels: list[str | None]
    left_out: dict[int, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def members(self, part: str) -> list[int]:
        return [index for index, its in enumerate(self.parts) if its == part and index not in self.left_out]

    def images(self, indices: Iterable[int]) -> int:
        """Number of images at these places."""
        return sum(self.counts[index] for index in indices)


def arrange(
    places: Sequence[str],
    given: Sequence[str | None] | None = None,
    wrapper: str | None = None,
    counts: Sequence[int] | None = None,
) -> Arrangement:
    """Parts and labels of `places`.

    `given`: labels from a table; they count instead of the folders' names. `wrapper`: the archive's name; a single top
    folder of that name is ignored even when the images are right in it. `counts`: number of images that each place
    stands for, those in its folder with its label; by default one.
    Raises DataError, with what to do, where parts and labels could only be guessed.
    """
    found = Arrangement([1] * len(places) if counts is None else counts, [""] * len(places), [None] * len(places))
    pieces = _look_through([place.split("/") for place in places], wrapper, found)
    _refuse_several_datasets(pieces)
    pieces = _take_parts(pieces, found)
    by_folder = not any(given or ())
    found.labels = [piece[0] if len(piece) > 1 else None for piece in pieces] if by_folder else list(given or ())
    _leave_strays_out(found, pieces, by_folder)
    _check_labels(label for index, label in enumerate(found.labels) if label and index not in found.left_out)
    _compare_parts(found)
    sizes = Counter[str]()
    for index, label in enumerate(found.labels):
        if label is not None and found.parts[index] not in HELD_OUT and index not in found.left_out:
            sizes[label] += found.counts[index]
    few = [f"{label!r} ({size})" for label, size in sorted(sizes.items()) if size < FEW]
    if few and len(sizes) > 1:
        found.remarks.append(
            f"classes with too few images to be in every split: {_some(few)}; add images or move the folder away"
        )
    return found


def is_part(folder: str) -> bool:
    return _plain(folder) in PARTS


def strays_of(count: int) -> int:
    """Number of `count` images that may be left out because they do not fit."""
    return max(1, count // 10) if count >= FEW else 0


def _look_through(pieces: list[list[str]], wrapper: str | None, found: Arrangement) -> list[list[str]]:
    """The places without folders around everything, such as the top folder of a zip or the name of an export."""
    total = sum(found.counts)
    while True:
        tops = {piece[0] for piece in pieces if len(piece) > 1}
        if len(tops) != 1 or min(tops).startswith("."):
            return pieces
        loose = found.images(index for index, piece in enumerate(pieces) if len(piece) == 1)
        shallow = found.images(index for index, piece in enumerate(pieces) if len(piece) <= 2)
        # a single folder of images is a class, unless it has the archive's name
        around = shallow < total and shallow <= strays_of(total)
        if not (around or (min(tops) == wrapper and loose <= strays_of(total))):
            return pieces
        pieces = [piece[1:] if len(piece) > 1 else piece for piece in pieces]


def _refuse_several_datasets(pieces: list[list[str]]) -> None:
    inner: dict[str, set[str]] = {}
    for piece in pieces:
        if len(piece) > 1:
            inner.setdefault(piece[0], set()).add(PARTS.get(_plain(piece[1]), "") if len(piece) > 2 else "")
    if set(inner) >= {"blobs", "snapshots"}:
        raise DataError(
            "data.address: this is a Hugging Face cache; give the one folder inside of snapshots/ that you mean"
        )
    several = [top for top, parts in inner.items() if {"train", "test"} <= parts]
    if len(several) > 1:
        raise DataError(
            f"data.address: the folders {_some(map(repr, several))} each hold parts train and test; give one of them, "
            "or make train and test the outer folders and the classes the inner ones"
        )


def _take_parts(pieces: list[list[str]], found: Arrangement) -> list[list[str]]:
    """Set the part of every image where the top folders are parts, and return the places below them."""
    tops = dict.fromkeys(piece[0] for piece in pieces if len(piece) > 1)
    known = {top: PARTS[_plain(top)] for top in tops if _plain(top) in PARTS}
    if not known:
        return pieces
    _refuse_doubles(known, "folders")
    outside = [index for index, piece in enumerate(pieces) if len(piece) < 2 or piece[0] not in known]
    strays, total = found.images(outside), sum(found.counts)
    if strays > strays_of(total):
        shown = "/".join(pieces[outside[0]])[:MAX_LABEL]
        raise DataError(
            f"data.address: {', '.join(known)} are parts of the data, and {strays:,} of {total:,} images "
            f"are in none (the first is {shown!r}); move them into a part or away"
        )
    if "train" in known.values():
        found.parts = [known.get(piece[0], "") if len(piece) > 1 else "" for piece in pieces]
    else:
        found.remarks.append(f"there is {', '.join(known)} and no train: the images are split again")
    found.left_out.update(dict.fromkeys(outside, f"in none of the parts {', '.join(known)}"))
    return [piece if index in found.left_out else piece[1:] for index, piece in enumerate(pieces)]


def _leave_strays_out(found: Arrangement, pieces: list[list[str]], by_folder: bool) -> None:
    """In each part all images have a label or none has; a few that differ are left out."""
    for part in dict.fromkeys(found.parts):
        members = found.members(part)
        bare = [index for index in members if found.labels[index] is None]
        total, unlabelled = found.images(members), found.images(bare)
        labelled = total - unlabelled
        if labelled == 0 or not bare:
            continue
        if unlabelled <= strays_of(total):
            reason = "outside of the class folders" if by_folder else "not in the table of labels"
            found.left_out.update(dict.fromkeys(bare, f"{reason}: it has no label"))
        elif by_folder and labelled <= strays_of(total):
            for index in set(members) - set(bare):
                found.left_out[index] = f"in the folder {found.labels[index]!r}, where nearly all others are in none"
        else:
            where = f"the part {part}" if part else "the images"
            shown = "/".join(pieces[bare[0]])[:MAX_LABEL]
            raise DataError(
                f"data.address: of {where}, {unlabelled:,} of {total:,} are in no class folder (the first is "
                f"{shown!r}) and the others are; give each a class folder, or put all of them into one"
                if by_folder
                else f"data.address: of {where}, {unlabelled:,} of {total:,} are not in the table of labels (the "
                f"first is {shown!r}); add them to it, or rename the table to use none"
            )


def _compare_parts(found: Arrangement) -> None:
    """Leave out images of validation and test whose labels train does not have, and all of a part without labels."""
    labels = {
        part: {label for index in found.members(part) if (label := found.labels[index]) is not None}
        for part in dict.fromkeys(found.parts)
        if found.members(part)
    }
    known = labels.get("train", labels.get("", set()))
    for part in HELD_OUT:
        if part not in labels:
            continue
        members = found.members(part)
        if labels[part] and not known:
            first = min(labels[part])
            raise DataError(
                f"data.address: the part {part} has class folders ({_some(map(repr, sorted(labels[part])))}) and train "
                f"has none; move the images of train into the folder of their class, such as train/{first}"
            )
        if known and not labels[part]:
            found.left_out.update(dict.fromkeys(members, f"the part {part} has no labels, and train has"))
            found.remarks.append(
                f"the part {part} has no labels and train has: its {found.images(members):,} images are left out, and "
                f"{part} is cut from train"
            )
        elif foreign := labels[part] - known:
            strangers = [index for index in members if found.labels[index] in foreign]
            counts = Counter[str]()
            for index in strangers:
                found.left_out[index] = f"of the class {found.labels[index]!r}, which train does not have"
                counts[str(found.labels[index])] += found.counts[index]
            shown = _some(f"{label!r} ({count:,})" for label, count in sorted(counts.items()))
            found.remarks.append(
                f"the part {part} has classes that train does not have: {shown}. They are not taken for normal images "
                "and are left out; score their folders as batches to see whether they are found"
            )
            if len(strangers) == len(members):
                found.remarks.append(f"nothing else is in the part {part}: it is cut from train")


def _check_labels(labels: Iterable[str]) -> None:
    names = dict.fromkeys(labels)
    for label in names:
        visible = [letter for letter in label if letter not in INVISIBLE]
        printable = all(letter.isprintable() or unicodedata.category(letter) == "Zs" for letter in visible)
        blank = all(unicodedata.category(letter) == "Zs" for letter in visible)
        if label.startswith(".") or len(label) > MAX_LABEL or not printable or blank or "\\" in label:
            raise DataError(
                f"data.address: the class {label[:MAX_LABEL]!r} has a name that cannot be a label; rename it "
                f"(printable, at most {MAX_LABEL} characters, no backslash, no dot in front)"
            )
    _refuse_doubles(names, "classes")


def _plain(name: str) -> str:
    """A name without the differences that a person or a file system may not see."""
    visible = "".join(letter for letter in unicodedata.normalize("NFC", name) if letter not in INVISIBLE)
    return unicodedata.normalize("NFC", visible.strip().lower())


def _refuse_doubles(names: Iterable[str], what: str) -> None:
    """Raise DataError for names that a person or a file system would take for the same."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_plain(name), []).append(name)
    for doubles in alike.values():
        if len(doubles) > 1:
            # names that look the same on a screen are shown by the codes of their letters
            seen = {"".join(c for c in unicodedata.normalize("NFC", name) if c not in INVISIBLE) for name in doubles}
            shown = " and ".join(map(ascii if len(seen) < len(doubles) else repr, doubles))
            raise DataError(
                f"data.address: the {what} {shown} differ in case, blanks at the ends or Unicode form only; "
                "give them one name"
            )


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
