"""The stage `calibrate`: fit the detector's members and their tails, then score the calibration images.

Members and tails are fitted on training and validation images. Calibration images are only scored. Where the images
have groups (data.group), one calibration image of each group is scored (detector/conformal.py says why).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from densitywatch.arrays import Arrays, Floats
from densitywatch.data.dataset import DatasetInfo, open_split, read_info
from densitywatch.data.reading import LARGEST_BY_DEFAULT, Images, Rows, at_size, images_within, reading_size
from densitywatch.detector import conformal, explain
from densitywatch.detector.detector import ARRAYS, DECLARED_MEMBER, FACTS, FORMAT, Detector
from densitywatch.detector.feature_cache import FeatureCache, Models
from densitywatch.detector.member import FittingData, Member, with_prefix, without_prefix
from densitywatch.detector.member_table import check_reads, find_member
from densitywatch.detector.tail_combination import combined, fit_tail, tail_surprise, variance_ratio
from densitywatch.errors import ModelError, ParamsError
from densitywatch.files import file_digest, whole_folder
from densitywatch.models.offers import Bounded, ExactDensity, PixelwiseDensity
from densitywatch.models.storage import WEIGHTS
from densitywatch.params import Params
from densitywatch.progress import say
from densitywatch.sizes import for_json

TRAIN_IMAGES, SAMPLE_IMAGES = 40000, 8000
"""Limits on the training images that are read once, and on the other ones and the validation images, of which all that
members read is kept. With them, time and memory do not grow with the dataset."""
BYTES_A_PIXEL = 3
"""What local features of a validation image take, at stride 16 (local_map.kept_features)."""
CALIBRATION_AT_ONCE = 500  # what members read of more would fill the memory; scores depend on it by rounding alone
FEW = 20
"""With fewer images to fit on a line says so."""
WEIGHT_COPIES = Path("models/.read")
"""Copies of the weights that calibrate and the benchmark depend on, made by stages of dvc.yaml; nothing loads them."""


def calibrate(params: Params, root: Path) -> Path:
    """Fit the detector of params.yaml and write models/detector, whole or not at all. Returns its folder."""
    prepared = root / "data" / "prepared"
    info = read_info(prepared)
    members = present([find_member(n) for n in detector_members(params.detector.members, params.detector.declared)])
    check_reads(members, params)
    if params.detector.tiles is not None and not any(member.places for member in members):
        raise ParamsError("detector.tiles: no member of the detector reads tiles; name one as own_place, or set null")
    drop_stale_copies(root / WEIGHT_COPIES / "detector", params.detector.reads)
    data, models = fitting_data(params, root)
    arrays = fit_members(members, data)
    facts = _facts(params, root, info, members, models)
    split = open_split(prepared, "calibration").one_of_each_group(params.seed)
    unit = "the calibration images" if split.groups is None else f"one image of each of {len(split):,} groups"
    say(f"calibrate: scoring {unit}")
    detector = Detector(facts, arrays | {"calibration.score": np.zeros(1)}, models)
    arrays |= _calibration(detector, split.images)
    fitted_on = len(data.train) + len(data.sample)
    if fitted_on < FEW or len(data.validation) < FEW:
        say(
            f"calibrate: fitted on {fitted_on:,} training and {len(data.validation):,} validation images, which are"
            f" few: with fewer than {FEW} of one a detector misses much; its rates hold all the same"
        )
    wanted = conformal.images_for(params.detector.false_alarm_rate)
    if len(split) < wanted:
        say(
            f"calibrate: a false-alarm rate of {params.detector.false_alarm_rate:g} takes {wanted:,} calibration images"
            f" and there are {len(split):,}, so no p-value is as small; raise data.calibration or the rate"
        )
    target = root / "models" / "detector"
    with whole_folder(target) as folder:
        safetensors.numpy.save_file({key: np.ascontiguousarray(arrays[key]) for key in sorted(arrays)}, folder / ARRAYS)
        (folder / FACTS).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return target


def _calibration(detector: Detector, images: Images) -> Arrays:
    """What the calibration images give, each ascending: scores, most surprising places, and -log p of each density.

    A few images at a time: what members read of them is many times their size.
    """
    found: dict[str, list[Floats]] = {}
    for start in range(0, len(images), CALIBRATION_AT_ONCE):
        some = FeatureCache(images[start : start + CALIBRATION_AT_ONCE], detector.models, size=detector.reading_size)
        found.setdefault("calibration.score", []).append(detector.combine(detector.member_scores(some)))
        if detector.has_places:
            found.setdefault("calibration.place_maximum", []).append(detector.place_surprise(some).max((1, 2)))
        for name, model in detector.models.used.items():
            if isinstance(model, PixelwiseDensity | ExactDensity | Bounded):
                found.setdefault(f"{name}.nll", []).append(some.nll(name))
    return {name: np.sort(np.concatenate(parts)) for name, parts in found.items()}


def fit_members(members: list[Member], data: FittingData) -> Arrays:
    """What every member needs to score, their tails, the weight of the transformation judge and the usual texture."""
    arrays: Arrays = {}
    surprises = []  # those of the members that the judge's weight is measured on
    for member in members:
        arrays |= with_prefix(member.name, fit_member(member, data))
        values = np.asarray(member.score(data.validation, without_prefix(member.name, arrays)), dtype=np.float64)
        tail = fit_tail(values)
        arrays |= with_prefix(f"tail.{member.name}", tail)
        if member.name != DECLARED_MEMBER:
            surprises.append(tail_surprise(values, tail))
    arrays["overlap"] = np.array([variance_ratio(combined(surprises)) if surprises else 1.0])
    return arrays | with_prefix("texture", explain.fit_texture(data.validation))


def fit_member(member: Member, data: FittingData) -> Arrays:
    """What `member` needs to score, fitted. Raises ModelError where images are read at too small a size for it."""
    if data.train.size < member.smallest:
        raise ModelError(
            f"{member.name} wants images of at least {member.smallest} pixels a side and detector.size is"
            f" {data.train.size}; raise it, or name another member"
        )
    if member.fit is None:
        return {}
    say(f"calibrate: fitting {member.name}")
    return member.fit(data)


def _facts(params: Params, root: Path, info: DatasetInfo, members: list[Member], models: Models) -> dict[str, Any]:
    """What detector.json says."""
    return {
        "format": FORMAT,
        "members": [member.name for member in members],
        "models": sorted(models.used),
        "weights": {name: file_digest(root / "models" / name / WEIGHTS) for name in sorted(models.used)},
        "density": next((name for name, model in models.used.items() if isinstance(model, PixelwiseDensity)), None),
        "declared": list(params.detector.declared),
        "size": for_json(info.size),
        "reading": reading_size(params.detector.size, info.size),
        "channels": info.channels,
        "resize": params.data.resize,
        "class_names": list(info.class_names),
        "data": {"name": info.name, "digest": info.digest, "counts": info.counts, "groups": info.groups},
        "false_discovery_rate": params.detector.false_discovery_rate,
        "false_alarm_rate": params.detector.false_alarm_rate,
    }


def detector_members(names: tuple[str, ...], declared: tuple[str, ...]) -> tuple[str, ...]:
    """The members of params, and the transformation judge where transformations are declared.

    Raises ParamsError for a member that makes no sense without declared transformations when there are none.
    """
    if declared and DECLARED_MEMBER not in names:
        names = (*names, DECLARED_MEMBER)
    for name in names:
        if find_member(name).needs_declared and not declared:
            raise ParamsError(f"detector.members: '{name}' needs detector.declared to name a transformation")
    return names


def present(members: list[Member]) -> list[Member]:
    """The members that this machine can fit, and a line about each other one.

    Raises ParamsError where none is left.
    """
    kept = []
    for member in members:
        why = member.missing() if member.missing else None
        if why is None:
            kept.append(member)
        else:
            say(f"calibrate: goes on without {member.name}: {why}")
    if not kept:
        raise ParamsError(f"detector.members: this machine can fit none of them ({why}); name others, as own_place")
    return kept


def fitting_data(params: Params, root: Path) -> tuple[FittingData, Models]:
    """What members are fitted on, and the project's models. Calibration and test images are not in it."""
    prepared = root / "data" / "prepared"
    models = Models(root / "models")
    info = read_info(prepared)
    size, images = reading_size(params.detector.size, info.size), open_split(prepared, "train").images
    # `sample` and `train` are disjoint, drawn at random and read in the order of the file
    order = np.random.default_rng(params.seed).permutation(len(images))
    samples = min(SAMPLE_IMAGES, max(1, len(images) // 4))
    sample, train = np.sort(order[:samples]), np.sort(order[samples : samples + TRAIN_IMAGES])
    validation = open_split(prepared, "validation")
    held_out = validation.images
    most = images_within(SAMPLE_IMAGES, BYTES_A_PIXEL * size**2)  # the first ones of a split are a fair sample of it
    data = FittingData(
        train=FeatureCache(Rows(images, train), models, size=size),
        sample=FeatureCache(Rows(images, sample), models, size=size),
        all_train=at_size(images, min(size, LARGEST_BY_DEFAULT)),
        validation=FeatureCache(Rows(held_out, np.arange(min(most, len(held_out)))), models, size=size),
        seed=params.seed,
        declared=params.detector.declared,
        small_network_steps=params.detector.small_network_steps,
        declared_steps=params.detector.declared_steps,
        tiles=params.detector.tiles,
        grouped=validation.groups is not None,
    )
    return data, models


def drop_stale_copies(folder: Path, names: tuple[str, ...]) -> None:
    """Remove copies of weights that params no longer name: the stage depends on the whole folder."""
    for file in folder.glob("*.safetensors"):
        if file.stem not in names:
            file.unlink()
