"""The share of each kind of image that belongs to no class, by the class-conditional density.

evaluation/measures/labels.py computes the p-values.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from densitywatch.arrays import Pixels
from densitywatch.data.dataset import open_split
from densitywatch.evaluation.measures.labels import belonging_p_values, known_by_label, nats_by_label
from densitywatch.models.offers import takes_labels
from densitywatch.models.storage import WEIGHTS, load_model_folder
from densitywatch.params import Params
from densitywatch.progress import track

LABEL_MODEL = "conditional_pixelcnn"
IMAGES = 100
"""Limit for each kind; every image is scored under every label."""


def no_class_rates(params: Params, root: Path, kinds: Mapping[str, Pixels]) -> dict[str, float]:
    """Kind of image -> the share with a p-value at or below detector.false_alarm_rate that they belong to any class.

    Empty where the benchmark reads no class-conditional density, or the dataset has no labels.
    """
    folder = root / "models" / LABEL_MODEL
    if LABEL_MODEL not in (*params.detector.reads, *params.detector.rivals_read) or not (folder / WEIGHTS).exists():
        return {}
    model: Any = load_model_folder(folder)
    calibration = open_split(root / "data" / "prepared", "calibration")
    usual = known_by_label(model, calibration, params.evaluate.label_images) if takes_labels(model) else None
    if usual is None:
        return {}
    rate = params.detector.false_alarm_rate
    return {
        kind: float((belonging_p_values(nats_by_label(model, images[:IMAGES]), *usual) <= rate).mean())
        for kind, images in track(kinds.items(), "images of no class", total=len(kinds))
    }
