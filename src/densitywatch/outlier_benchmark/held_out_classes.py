"""A class that was never seen: for each class everything is fitted anew without it, on a small budget."""

from __future__ import annotations

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

TRAIN, SAMPLE = 2000, 400
"""Limits on the images of FittingData."""
LIMITS: dict[SplitName, int] = {"train": TRAIN + SAMPLE, "validation": 300, "test": 300}
OUTLIERS = 150
"""Limit on the images of the class that is held out."""
RIVAL = "pixel_mixture"
"""Measured whether or not it is a member."""


def held_out_classes(params: Params, root: Path) -> dict[str, dict[str, float]]:
    """Class -> {"detector": AUROC, "pixel_mixture": AUROC, each member: AUROC}, at most `detector.folds` classes.

    The PixelCNN of a fold is a small one, trained for `detector.small_network_steps` / 3 batches; members that read
    another model are left out.
    """
    prepared = root / "data" / "prepared"
    info = read_info(prepared)
    names: tuple[SplitName, ...] = ("train", "validation", "test")
    # small images, so that a fold's small PixelCNN trains quickly
    size = min(reading_size(params.detector.size, info.size), LARGEST_BY_DEFAULT)
    splits = {name: open_split(prepared, name, size) for name in names}
    folds = {}
    for label in track(range(min(params.detector.folds, len(info.class_names))), "held-out classes"):
        inside = {name: _chosen(split, split.labels != label, LIMITS[name]) for name, split in splits.items()}
        outliers = _chosen(splits["test"], splits["test"].labels == label, OUTLIERS)
        if min(len(outliers), *(len(images) for images in inside.values())) < 2:
            continue
        folds[info.class_names[label]] = _fold(params, inside, outliers)
    return folds


def _fold(params: Params, inside: dict[SplitName, Pixels], outliers: Pixels) -> dict[str, float]:
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
    models = Models(loaded={"pixelcnn": load_small_density(small)})
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
    members = [find_member(name) for name in params.detector.members]
    names = [member.name for member in members if not member.needs_declared and set(member.reads) <= set(models)]
    for name in dict.fromkeys([*names, RIVAL]):
        member = find_member(name)
        arrays = member.fit(data) if member.fit else {}
        values = [np.asarray(member.score(features, arrays), dtype=np.float64) for features in (normal, held_out)]
        result[name] = auroc(*values)
        if name in names:
            tail = fit_tail(np.asarray(member.score(data.validation, arrays), dtype=np.float64))
            for found, value in zip(surprises, values, strict=True):
                found.append(tail_surprise(value, tail))
    return {"detector": auroc(*(combined(found) for found in surprises)), **result}


def _chosen(split: Split, chosen: NDArray[np.bool_], limit: int) -> Pixels:
    """The first `limit` of the chosen images."""
    return np.array(split.images[np.flatnonzero(chosen)[:limit]])
