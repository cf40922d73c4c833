"""The calibration images that give labels their p-values in a batch, scored once and kept.

A p-value of a label ranks the detector's score among calibration images that the labelling model gives the same label
(detector/label_ranks.py). Neither the detector nor the model keeps these scores, since each is made without the other.
So they are computed when the two first meet, on this machine's prepared data. That is right only where both were made
from this very dataset: in another one the calibration images may be images that a model was trained on.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from densitywatch.data.dataset import open_split, read_info
from densitywatch.data.reading import Images, Rows
from densitywatch.detector.label_ranks import LabelRanks
from densitywatch.errors import DataError
from densitywatch.files import whole_file
from densitywatch.params import Params
from densitywatch.progress import say, track

LABEL_SCORES = Path("models/.labels")
"""Scores and labels of the calibration images, one file for each pair of a detector and a labelling model."""
AT_ONCE = 250


@dataclass(frozen=True)
class LabelCalibration:
    """The calibration images to rank among, and a digest of which they are."""

    images: Images
    key: str


def label_calibration_images(detector: Any, model: Any, params: Params, root: Path) -> LabelCalibration | None:
    """The first evaluate.label_images calibration images of data/prepared; of a group, one counts.

    None, with a line that says why, where the detector or the model was made from another dataset than the one here.
    """
    prepared = root / "data" / "prepared"
    try:
        here = read_info(prepared).digest
        images = open_split(prepared, "calibration").one_of_each_group(params.seed).images
    except DataError:
        here = None
    facts = getattr(detector, "facts", {})
    made_from = {facts.get("data", {}).get("digest"), getattr(model, "header", {}).get("data_digest")}
    if here is None or made_from != {here}:
        say(
            "score: labels get no p-values: data/prepared is not the dataset that both the detector and the labelling"
            " model were made from"
        )
        return None
    count = min(len(images), params.evaluate.label_images)
    key = hashlib.sha256(f"{here} {params.seed} {count}".encode()).hexdigest()
    return LabelCalibration(Rows(images, np.arange(count)), key)


def label_ranks(scorer: Any, calibration: LabelCalibration, kept: Path) -> LabelRanks:
    """The ranks by label: from the file `kept`, or else computed with `scorer`, a WithLabels, and kept there."""
    classes, count = len(scorer.class_names), len(calibration.images)
    try:
        arrays = safetensors.numpy.load_file(kept)
        score, label = arrays["score"], arrays["label"]
        whole = score.shape == label.shape == (count,) and score.dtype == np.float64 and label.dtype == np.int64
        if whole and np.isfinite(score).all() and ((label >= 0) & (label < classes)).all():
            return LabelRanks(score, label, classes)
    except (OSError, KeyError, safetensors.SafetensorError):
        pass  # not there or damaged: it is made anew
    starts = track(range(0, count, AT_ONCE), "score: calibration images of each label", -(-count // AT_ONCE))
    parts = [scorer.score(np.array(calibration.images[start : start + AT_ONCE])) for start in starts]
    score = np.concatenate([np.asarray(part.score, dtype=np.float64) for part in parts])
    label = np.concatenate([np.asarray(part.label, dtype=np.int64) for part in parts])
    with whole_file(kept) as temporary:
        safetensors.numpy.save_file({"score": score, "label": label}, temporary)
    return LabelRanks(score, label, classes)
