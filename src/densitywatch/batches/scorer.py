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
from densitywatch.batches.label_calibration import LABEL_SCORES, label_calibration_images, label_ranks
from densitywatch.data.reading import stored_size
from densitywatch.detector.detector import load
from densitywatch.detector.label_ranks import LabelRanks
from densitywatch.errors import ModelError
from densitywatch.evaluation.measures.labels import by_bayes, label_prior, nats_by_label
from densitywatch.files import file_digest
from densitywatch.models.offers import LabelDensity, takes_labels
from densitywatch.models.storage import WEIGHTS, load_model_folder
from densitywatch.params import Params
from densitywatch.progress import say
from densitywatch.registry.download import model_folder
from densitywatch.sizes import Size, in_pixels


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

    @property
    def label_p_value(self) -> Floats | None:
        """(N,); small says that the image belongs to no class. None where there are no calibration images for it."""


class Scorer(Protocol):
    """What batch scoring asks of a detector; detector.detector.Detector is one."""

    size: Size
    """Of the images that it takes: pixels a side, or height and width."""
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
        """(N, h, w): how unusual each place or pixel is, nats. Raises ModelError where the scorer has no such map."""

    def explain(self, scores: Any, i: int) -> str:
        """Why image i has its score, in words."""


def has_places(scorer: Scorer) -> bool:
    """Whether the scorer gives every place of an image a p-value, with `place_p_values` and `place_maxima`."""
    return bool(getattr(scorer, "has_places", False)) and getattr(scorer, "place_maxima", None) is not None


class WithLabels:
    """A scorer whose scores also have labels, from `model`, a class-conditional density by Bayes' rule.

    `prior`: the labels' own probabilities, (classes,); None: all are equally likely (evaluation/measures/labels.py).
    Every image costs a pass of the model, or of a part of it, for each label. `label_ranks`, where it is set, gives
    every label a p-value that the image belongs to it.

    Raises ModelError for a model without labels, or of images of another size or colour than the detector's.
    """

    def __init__(self, detector: Scorer, model: Any, where: str, prior: Floats | None = None) -> None:
        by_label = isinstance(model, LabelDensity) and takes_labels(model)
        if not by_label:
            raise ModelError(f"{where}: is no density by label; take a conditional one such as conditional_pixelcnn")
        stored = stored_size(model)
        if (model.channels, stored) != (detector.channels, detector.size):
            raise ModelError(
                f"{where}: made for images of {in_pixels(stored)} pixels and {model.channels} channels, the"
                f" detector for {in_pixels(detector.size)} and {detector.channels}"
            )
        self.detector, self.model, self.prior = detector, model, prior
        self.size, self.channels, self.resize = detector.size, detector.channels, detector.resize
        self.calibration = detector.calibration
        self.false_discovery_rate, self.false_alarm_rate = detector.false_discovery_rate, detector.false_alarm_rate
        self.class_names: tuple[str, ...] = model.class_names
        self.label_ranks: LabelRanks | None = None
        self.has_places = has_places(detector)
        self.place_maxima: Floats | None = getattr(detector, "place_maxima", None)

    def score(self, images: Pixels) -> Any:
        """The detector's scores, with labels, their probabilities and, where they can be had, their p-values."""
        found, scores = by_bayes(nats_by_label(self.model, images), self.prior), self.detector.score(images)
        p_value = None if self.label_ranks is None else self.label_ranks.p_values(scores.score, found.label)
        return replace(scores, label=found.label, label_probability=found.probability, label_p_value=p_value)

    def surprise_map(self, images: Pixels) -> NDArray[np.float32]:
        """The detector's."""
        return self.detector.surprise_map(images)

    def place_p_values(self, images: Pixels) -> Floats:
        """The detector's, where it `has_places`."""
        inner: Any = self.detector
        return np.asarray(inner.place_p_values(images))

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
    model: Any = load_model_folder(folder)
    prior = label_prior(model, params.inbox.label_prior)
    labelled = WithLabels(loaded, model, label_model, prior)
    parts = [digest, file_digest(folder / WEIGHTS), params.inbox.label_prior]
    images = label_calibration_images(loaded, model, params, root)
    if images is not None:
        parts.append(images.key)
    whole = hashlib.sha256(" ".join(parts).encode()).hexdigest()
    if images is not None:
        labelled.label_ranks = label_ranks(labelled, images, root / LABEL_SCORES / f"{whole}.safetensors")
        if (words := labelled.label_ranks.too_small(loaded.false_alarm_rate, labelled.class_names)) is not None:
            say(f"score: {words}")
    return labelled, whole


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
