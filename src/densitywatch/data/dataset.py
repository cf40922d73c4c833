"""The prepared dataset as every later stage reads it: for each split uint8 arrays and labels, and dataset.json."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt

from densitywatch.data.groups.draw import one_of_each_group
from densitywatch.data.reading import Images, Rows, at_size
from densitywatch.errors import DataError
from densitywatch.files import MOST_LISTS, read_back
from densitywatch.sizes import Size, read_size

SplitName = Literal["train", "validation", "calibration", "gate", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
LATER_SPLITS = ("gate",)
"""Splits that datasets of earlier versions lack; such a dataset can still be read."""


@dataclass(frozen=True)
class DatasetInfo:
    """What a stage knows about the dataset without opening an array."""

    name: str
    size: Size
    """Pixels a side, or height and width where images are no squares."""
    channels: int
    class_names: tuple[str, ...]
    """Empty when the images have no labels."""
    digest: str
    """sha256 over all arrays and labels: datasets with the same digest are the same images in the same order."""
    counts: dict[SplitName, int]
    groups: dict[SplitName, int]
    """Number of groups in each split; empty where data.group is not in force and every image counts by itself."""


@dataclass(frozen=True)
class Split:
    """One split: the images stay on disk until they are read."""

    images: Images
    """(N, C, H, W), memory-mapped and read-only, or resized when they are asked for."""
    labels: npt.NDArray[np.int64]
    """(N,); -1 where there is no label."""
    groups: npt.NDArray[np.int64] | None = None
    """(N,) the number of each image's group, the same in no two splits; None: every image counts by itself."""

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, size: Size) -> Split:
        """The same images at another size."""
        return Split(at_size(self.images, size), self.labels, self.groups)

    def one_of_each_group(self, seed: int) -> Split:
        """One image of each group, drawn at random; the split itself where every image counts by itself."""
        if self.groups is None:
            return self
        rows = one_of_each_group(self.groups, seed)
        return Split(Rows(self.images, rows), self.labels[rows], self.groups[rows])


class LeftOut(BaseModel):
    """A file or an image that is in no split."""

    path: str
    reason: str


class GroupFacts(BaseModel):
    """What dataset.json says of the groups."""

    setting: str | None = None
    """data.group of params.yaml."""
    rule: str | None = None
    """The rule in force; None: every image counts by itself."""
    found: str = ""
    """What prepare found, in words."""
    warning: str = ""
    counts: dict[str, NonNegativeInt] = {}
    largest: NonNegativeInt = 1
    """Number of images in the largest group."""


class Facts(BaseModel):
    """The content of dataset.json."""

    name: str
    size: PositiveInt | Annotated[list[PositiveInt], Field(min_length=2, max_length=2)]
    channels: PositiveInt
    class_names: list[str]
    digest: str
    counts: dict[str, NonNegativeInt]
    groups: GroupFacts = GroupFacts()
    judged: dict[str, NonNegativeInt] = {}
    """Number of images of a judged random draw among those of `calibration` and `gate`; in `gate` they come last."""
    dropped: list[LeftOut] = []
    rejected: list[LeftOut] = []


def read_facts(folder: Path) -> Facts:
    """The whole `folder/dataset.json`. Raises DataError when it is missing or damaged."""
    try:
        facts = Facts.model_validate(read_back(folder / "dataset.json", Facts, MOST_LISTS))
        if missing := [name for name in SPLITS if name not in facts.counts and name not in LATER_SPLITS]:
            raise DataError(f"no count of {missing[0]}")
    except FileNotFoundError:
        raise DataError(f"{folder}: no prepared dataset here; run `dvc repro prepare`") from None
    except DataError:
        raise DataError(f"{folder}/dataset.json: not readable; run `dvc repro -f prepare`") from None
    return facts


def read_info(folder: Path) -> DatasetInfo:
    """The part of `folder/dataset.json` about the arrays. Raises DataError when it is missing or damaged."""
    facts = read_facts(folder)
    return DatasetInfo(
        name=facts.name,
        size=read_size(facts.size),
        channels=facts.channels,
        class_names=tuple(facts.class_names),
        digest=facts.digest,
        counts={name: facts.counts.get(name, 0) for name in SPLITS},
        groups={name: facts.groups.counts[name] for name in SPLITS if name in facts.groups.counts},
    )


def open_split(folder: Path, split: SplitName, size: Size | None = None) -> Split:
    """The arrays of one split, at `size` or as they are stored.

    Raises DataError when they are missing or do not fit together.
    """
    if split not in SPLITS:
        raise DataError(f"{split!r}: no such split; the splits are {', '.join(SPLITS)}")
    path = folder / f"{split}.npy"
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / f"{split}_labels.npy", allow_pickle=False)
        named = folder / f"{split}_groups.npy"
        groups = np.load(named, allow_pickle=False) if named.exists() else None
    except FileNotFoundError:
        raise DataError(f"{path}: no prepared images here; run `dvc repro prepare`") from None
    except (ValueError, EOFError):
        raise DataError(f"{path}: not a whole array; run `dvc repro -f prepare`") from None
    if images.dtype != np.uint8 or images.ndim != 4 or labels.dtype != np.int64 or labels.shape != images.shape[:1]:
        raise DataError(f"{path}: images and labels do not fit together; run `dvc repro -f prepare`")
    if groups is not None and (groups.dtype != np.int64 or groups.shape != labels.shape):
        raise DataError(f"{named}: groups and images do not fit together; run `dvc repro -f prepare`")
    opened = Split(images=images, labels=labels, groups=groups)
    return opened if size is None else opened.at(size)


def batches(
    split: Split, batch_size: int, limit: int | None = None
) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]]:
    """Consecutive (images (B, C, H, W), labels (B,)) in the split's order, at most `limit` images; writable copies.

    The order of a split mixes the labels evenly, so its first images are a fair sample of all.
    """
    count = len(split) if limit is None else min(limit, len(split))
    for start in range(0, count, batch_size):
        stop = min(start + batch_size, count)
        yield np.array(split.images[start:stop]), np.array(split.labels[start:stop])
