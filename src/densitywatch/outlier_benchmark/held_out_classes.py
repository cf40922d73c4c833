"""A class that was never seen: for each class everything is fitted anew without it, on a small budget."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from densitywatch.arrays import Floats, Pixels
from densitywatch.data.dataset import Split, SplitName, open_split, read_info
from densitywatch.data.reading import LARGEST_BY_DEFAULT, reading_size
from densitywatch.detector.feature_cache import FeatureCache, Models
from densitywatch.detector.member import FittingData
from densitywatch.detector.member_table import find_member
from densitywatch.detector.scores.small_density import fit_small_density, load_small_density
from densitywatch.detector.tail_combination import combined, fit_tail, tail_surprise
from densitywatch.outlier_benchmark.auroc import auroc
from densitywatch.params import Params
from densitywatch.progress import track
from densitywatch.sizes import Size

TRAIN, SAMPLE = 2000, 400
"""Limits on the images of FittingData."""
LIMITS: dict[SplitName, int] = {"train": TRAIN + SAMPLE, "validation": 300, "test": 300}
OUTLIERS = 150
"""Limit on the images of the class that is held out."""
RIVAL = "pixel_mixture"
"""Measured whether or not it is a member."""
MODEL = "pixelcnn"
"""The model that each fold trains."""


def held_out_classes(params: Params, root: Path, members: Sequence[str]) -> dict[str, dict[str, float]]:
    """Class -> {"detector": AUROC, "pixel_mixture": AUROC, each member: AUROC}, at most `detector.folds` classes.

    `members`: those of the fitted detector that `measured` keeps; without any there is nothing to measure. The PixelCNN
    of a fold is a small one, trained for `detector.small_network_steps` / 3 batches.
    """
    if not members:
        return {}
    prepared = root / "data" / "prepared"
    info = read_info(prepared)
    names: tuple[SplitName, ...] = ("train", "validation", "test")
    size = fold_size(params, info.size)
    splits = {name: open_split(prepared, name, size) for name in names}
    folds = {}
    for label in track(range(min(params.detector.folds, len(info.class_names))), "held-out classes"):
        inside = {name: _chosen(split, split.labels != label, LIMITS[name]) for name, split in splits.items()}
        outliers = _chosen(splits["test"], splits["test"].labels == label, OUTLIERS)
        if min(len(outliers), *(len(images) for images in inside.values())) < 2:
            continue
        folds[info.class_names[label]] = _fold(params, members, inside, outliers)
    return folds


def fold_size(params: Params, data_size: Size) -> int:
    """Pixels a side of the images of a fold: small ones, so that its small PixelCNN trains quickly."""
    return min(reading_size(params.detector.size, data_size), LARGEST_BY_DEFAULT)


def measured(members: Iterable[str], size: int) -> tuple[list[str], list[str]]:
    """The members that a fold can measure at this size; and the others, each with the reason."""
    kept, left_out = [], []
    for member in map(find_member, members):
        if member.smallest > size:
            left_out.append(f"{member.name} wants images of {member.smallest} pixels, and these have {size}")
        elif member.needs_declared:
            left_out.append(f"{member.name} judges declared transformations")
        elif other := [model for model in member.reads if model != MODEL]:
            left_out.append(f"{member.name} reads the model '{other[0]}'")
        else:
            kept.append(member.name)
    return kept, left_out


def _fold(
    params: Params, members: Sequence[str], inside: dict[SplitName, Pixels], outliers: Pixels
) -> dict[str, float]:
    """The AUROCs of one class held out; `inside` are the images of the other classes."""
    train = inside["train"]
    cut = len(train) * TRAIN // (TRAIN + SAMPLE)
    small = fit_small_density(
        train,
        channels=12,
        dilations=(1, 2),
        steps=max(1, params.detector.small_network_steps // 3),
        mutation=0.0,
        seed=params.seed,
    )
    models = Models(loaded={MODEL: load_small_density(small)})
    data = FittingData(
        train=FeatureCache(train[:cut], models),
        sample=FeatureCache(train[cut:], models),
        all_train=train,
        validation=FeatureCache(inside["validation"], models),
        seed=params.seed,
        declared=(),
        small_network_steps=1,
        declared_steps=1,
    )
    normal, held_out = FeatureCache(inside["test"], models), FeatureCache(outliers, models)
    result: dict[str, float] = {}
    surprises: list[list[Floats]] = [[], []]  # the members', of the normal images and of those held out
    for name in dict.fromkeys([*members, RIVAL]):
        member = find_member(name)
        arrays = member.fit(data) if member.fit else {}
        values = [np.asarray(member.score(features, arrays), dtype=np.float64) for features in (normal, held_out)]
        result[name] = auroc(*values)
        if name in members:
            tail = fit_tail(np.asarray(member.score(data.validation, arrays), dtype=np.float64))
            for found, value in zip(surprises, values, strict=True):
                found.append(tail_surprise(value, tail))
    return {"detector": auroc(*(combined(found) for found in surprises)), **result}


def _chosen(split: Split, chosen: NDArray[np.bool_], limit: int) -> Pixels:
    """The first `limit` of the chosen images."""
    return np.array(split.images[np.flatnonzero(chosen)[:limit]])
