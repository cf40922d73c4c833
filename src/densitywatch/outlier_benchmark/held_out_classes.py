"""A class that was never seen: everything is fitted anew without it, on a small budget, once for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from densitywatch.data.dataset import Split, SplitName, open_split, read_info
from densitywatch.data.reading import LARGEST_BY_DEFAULT, reading_size
from densitywatch.detector.feature_cache import Models, Readings
from densitywatch.detector.member import Given
from densitywatch.detector.member_table import find_member
from densitywatch.detector.scores import networks
from densitywatch.detector.tail_combination import fit_tail, tail_surprise
from densitywatch.outlier_benchmark.auroc import auroc
from densitywatch.params import Params
from densitywatch.progress import track

TRAIN, SAMPLE = 2000, 400
LIMITS: dict[SplitName, int] = {"train": TRAIN + SAMPLE, "validation": 300, "test": 300}
OUTSIDE = 150
RIVAL = "pixel_mixture"


def held_out_classes(params: Params, root: Path) -> dict[str, dict[str, float]]:
    """Class -> {"detector": AUROC, "pixel_mixture": AUROC, each member: AUROC}, at most `detector.folds` classes.

    The PixelCNN of a fold is a small one, trained for `detector.small_network_steps` / 3 batches; members that read
    another model are left out.
    """
    data = root / "data" / "prepared"
    info = read_info(data)
    names: tuple[SplitName, ...] = ("train", "validation", "test")
    # the small networks of a fold are there to be quick
    size = min(reading_size(params.detector.size, info.size), LARGEST_BY_DEFAULT)
    splits = {name: open_split(data, name, size) for name in names}
    folds = {}
    for label in track(range(min(params.detector.folds, len(info.class_names))), "held-out classes"):
        inside = {name: _some(split, split.labels != label, LIMITS[name]) for name, split in splits.items()}
        outside = _some(splits["test"], splits["test"].labels == label, OUTSIDE)
        if min(len(outside), *(len(images) for images in inside.values())) < 2:
            continue
        folds[info.class_names[label]] = _fold(params, inside, outside)
    return folds


def _fold(params: Params, inside: dict[SplitName, NDArray[np.uint8]], outside: NDArray[np.uint8]) -> dict[str, float]:
    train = inside["train"]
    cut = len(train) * TRAIN // (TRAIN + SAMPLE)
    small = networks.fit_small_density(
        train,
        channels=12,
        dilations=(1, 2),
        steps=max(1, params.detector.small_network_steps // 3),
        mutation=0.0,
        seed=params.seed,
    )
    models = Models(given={"pixelcnn": networks.small_density(small)})
    given = Given(
        train=Readings(train[:cut], models),
        sample=Readings(train[cut:], models),
        all_train=train,
        validation=Readings(inside["validation"], models),
        seed=params.seed,
        declared=(),
        steps=1,
        declared_steps=1,
    )
    normal, foreign = Readings(inside["test"], models), Readings(outside, models)
    result: dict[str, float] = {}
    total = [np.zeros(len(normal)), np.zeros(len(foreign))]
    found = [find_member(name) for name in params.detector.members]
    names = [member.name for member in found if not member.declared and set(member.reads) <= set(models)]
    for name in dict.fromkeys([*names, RIVAL]):
        member = find_member(name)
        arrays = member.fit(given) if member.fit else {}
        values = [np.asarray(member.score(seen, arrays), dtype=np.float64) for seen in (normal, foreign)]
        result[name] = auroc(*values)
        if name in names:
            tail = fit_tail(np.asarray(member.score(given.validation, arrays), dtype=np.float64))
            total = [sum_ + tail_surprise(value, tail) for sum_, value in zip(total, values, strict=True)]
    return {"detector": auroc(*total), **result}


def _some(split: Split, chosen: NDArray[np.bool_], limit: int) -> NDArray[np.uint8]:
    """The first `limit` of the chosen images."""
    return np.array(split.images[np.flatnonzero(chosen)[:limit]])
