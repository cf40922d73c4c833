"""The share of each kind of image that belongs to no class.

A class-conditional density gives the label. The detector's score, ranked among normal images with that label, gives the
p-value (detector/label_ranks.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from densitywatch.arrays import Floats, Pixels
from densitywatch.data.dataset import open_split
from densitywatch.data.reading import Rows
from densitywatch.detector.detector import Detector
from densitywatch.detector.label_ranks import LabelRanks
from densitywatch.evaluation.measures.labels import by_bayes, label_prior, nats_by_label
from densitywatch.models.offers import takes_labels
from densitywatch.models.storage import WEIGHTS, load_model_folder
from densitywatch.params import Params
from densitywatch.progress import say, track

LABEL_MODEL = "conditional_pixelcnn"
IMAGES = 100
"""Limit for each kind of outlier; every image is scored under every label."""
NORMAL = "normal"


def no_class_rates(
    params: Params, root: Path, detector: Detector, kinds: Mapping[str, Pixels], scores: Mapping[str, Floats]
) -> dict[str, float]:
    """Kind of image -> the share with a p-value at or below detector.false_alarm_rate that they belong to any class.

    All images of the kind `normal` count, so that their share can be compared with the rate that was asked for. Empty
    where the benchmark reads no class-conditional density, or the dataset has no labels.
    """
    folder = root / "models" / LABEL_MODEL
    if LABEL_MODEL not in (*params.detector.reads, *params.detector.rivals_read) or not (folder / WEIGHTS).exists():
        return {}
    model: Any = load_model_folder(folder)
    calibration = open_split(root / "data" / "prepared", "calibration").one_of_each_group(params.seed)
    if not takes_labels(model) or not (calibration.labels >= 0).any():
        return {}
    rate, prior = params.detector.false_alarm_rate, label_prior(model, params.inbox.label_prior)

    def label(images: Any) -> Any:
        return by_bayes(nats_by_label(model, images), prior).label

    some = Rows(calibration.images, np.arange(min(len(calibration), params.evaluate.label_images)))
    parts = [np.array(some[i : i + IMAGES]) for i in range(0, len(some), IMAGES)]
    known = np.concatenate([detector.score(part).score for part in parts])
    ranks = LabelRanks(known, label(some), classes=model.classes)
    if (words := ranks.too_small(rate, model.class_names)) is not None:
        say(f"benchmark: {words}")
    rates = {}
    for kind, images in track(kinds.items(), "images of no class", total=len(kinds)):
        few = images if kind == NORMAL else images[:IMAGES]
        rates[kind] = float((ranks.p_values(scores[kind][: len(few)], label(few)) <= rate).mean())
    return rates
