"""What scores a batch: the detector, and with it, where one is asked for, a model that gives every image a label.

Which class an image looks like most and whether it belongs at all are two questions. The label answers the first, also
for an image that the detector flags. The flag answers the second, at the stated rate.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from densitywatch.arrays import Floats, Pixels
from densitywatch.data.reading import stored_size
from densitywatch.detector.detector import load
from densitywatch.errors import ModelError
from densitywatch.evaluation.measures.labels import by_bayes, nats_by_label
from densitywatch.files import file_digest
from densitywatch.models.offers import LabelDensity, takes_labels
from densitywatch.models.storage import WEIGHTS, load_model_folder
from densitywatch.params import Params
from densitywatch.registry.download import model_folder


class BatchScores(Protocol):
    """What a scorer says of N images; detector.detector.Scores is one."""

    @property
    def score(self) -> Floats:
        """(N,); higher is more outlying."""

    @property
    def p_value(self) -> Floats:
        """(N,); small is outlying."""

    @property
    def bits_per_dim(self) -> Floats:
        """(N,); NaN where there is no exact density."""

    @property
    def label(self) -> NDArray[np.int64] | None:
        """(N,) numbers of `Scorer.class_names`, or None without a labelling model."""

    @property
    def label_probability(self) -> Floats | None:
        """(N,); None without a labelling model."""


class Scorer(Protocol):
    """What batch scoring asks of a detector; detector.detector.Detector is one."""

    size: int
    """Pixels a side of the images that it takes."""
    channels: int
    resize: str
    """How images of another shape are brought to the size: crop, pad or stretch."""
    class_names: tuple[str, ...]
    calibration: Floats
    """The scores of the calibration images."""
    false_discovery_rate: float
    false_alarm_rate: float

    def score(self, images: Pixels) -> Any:
        """`BatchScores` of images (N, C, H, W). `explain` of the same scorer takes them back."""

    def surprise_map(self, images: Pixels) -> NDArray[np.float32]:
        """(N, H, W) nats of every pixel. Raises ModelError where the scorer has no exact density."""

    def explain(self, scores: Any, i: int) -> str:
        """Why image i has its score, in words."""


class WithLabels:
    """A scorer whose scores also have labels, from `model`, a class-conditional density by Bayes' rule.

    All labels count as equally likely (evaluation/measures/labels.py). Every image costs a pass of the model, or of a
    part of it, for each label.

    Raises ModelError for a model without labels, or of images of another size or colour than the detector's.
    """

    def __init__(self, detector: Scorer, model: Any, where: str) -> None:
        by_label = isinstance(model, LabelDensity) and takes_labels(model)
        if not by_label:
            raise ModelError(f"{where}: is no density by label; take a conditional one such as conditional_pixelcnn")
        stored = stored_size(model)
        if (model.channels, stored) != (detector.channels, detector.size):
            raise ModelError(
                f"{where}: made for images of {stored} x {stored} pixels and {model.channels} channels, the"
                f" detector for {detector.size} x {detector.size} and {detector.channels}"
            )
        self.detector, self.model = detector, model
        self.size, self.channels, self.resize = detector.size, detector.channels, detector.resize
        self.calibration = detector.calibration
        self.false_discovery_rate, self.false_alarm_rate = detector.false_discovery_rate, detector.false_alarm_rate
        self.class_names: tuple[str, ...] = model.class_names

    def score(self, images: Pixels) -> Any:
        """The detector's scores, with labels and their probabilities."""
        found = by_bayes(nats_by_label(self.model, images))
        return replace(self.detector.score(images), label=found.label, label_probability=found.probability)

    def surprise_map(self, images: Pixels) -> NDArray[np.float32]:
        """The detector's."""
        return self.detector.surprise_map(images)

    def explain(self, scores: Any, i: int) -> str:
        """The detector's."""
        return self.detector.explain(scores, i)


def load_scorer(
    detector: Scorer | Path | str | None, label_model: str | None, params: Params, root: Path
) -> tuple[Scorer, str]:
    """The scorer and the sha256 of all that it is made of.

    `detector`: a folder, a registry address or a loaded detector; None takes models/detector. `label_model`: a folder
    or registry address of a class-conditional density. Raises ModelError or RegistryError when one is missing or not
    whole.
    """
    loaded, digest = load_detector(detector, params, root)
    if label_model is None:
        return loaded, digest
    folder = model_folder(label_model, params, root)
    labelled = WithLabels(loaded, load_model_folder(folder), label_model)
    return labelled, hashlib.sha256(f"{digest} {file_digest(folder / WEIGHTS)}".encode()).hexdigest()


def load_detector(detector: Scorer | Path | str | None, params: Params, root: Path) -> tuple[Scorer, str]:
    """A detector and the sha256 of all that it is made of."""
    if not isinstance(detector, Path | str | None):
        return detector, str(getattr(detector, "digest", "unknown"))
    folder = model_folder(detector or "models/detector", params, root)
    loaded = load(folder)
    # the same detector has the same digest in models/ and as the registry packs it, with its models inside
    parts = {
        str(path.relative_to(folder)).removeprefix("members/"): path
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    for name in loaded.facts["models"]:
        parts.setdefault(f"{name}/model.safetensors", folder.parent / name / "model.safetensors")
    whole = hashlib.sha256()
    for name in sorted(parts):
        whole.update(f"{name} {file_digest(parts[name])}\n".encode())
    return loaded, whole.hexdigest()
