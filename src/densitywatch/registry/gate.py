"""May this model reach users? The gate measures candidate and champion now, on the same images, and fails closed.

Stored figures are never compared: a champion's old figure was taken on other images or by other code, or is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from densitywatch.arrays import Pixels
from densitywatch.data.dataset import open_split
from densitywatch.data.reading import at_size, images_at_once, images_within, stored_size
from densitywatch.detector import detector
from densitywatch.errors import DensitywatchError
from densitywatch.evaluation.measures import sample_quality
from densitywatch.models.offers import Bounded, ExactDensity, Reconstructor
from densitywatch.models.storage import load_model_folder
from densitywatch.params import Params

BATCH = 250
CHANCE = 1.63
"""Kolmogorov-Smirnov at 1 %: a well calibrated detector exceeds this in one of a hundred gates."""
AFRESH = "to start afresh, `densitywatch promote --afresh` compares with nothing"


@dataclass(frozen=True)
class Measurement:
    """What the gate has measured of one model. Smaller is better for every measure."""

    measure: str
    value: float


@dataclass(frozen=True)
class Decision:
    """What the gate says, in one sentence, and the measurements behind it."""

    passed: bool
    reason: str
    candidate: Measurement | None = None
    champion: Measurement | None = None

    def __str__(self) -> str:
        return self.reason


def gate(name: str, candidate: Path, champion: Path | None, params: Params, root: Path) -> Decision:
    """Measure the models (or detectors) in both folders on the first params.gate.images validation images and compare.

    The measure is the best one that the candidate offers: bits/dim of an exact density, bits/dim of the ELBO, mean
    squared error of reconstructions, or the FID of samples. What cannot be measured does not pass. A bad candidate
    raises nothing.
    """
    stored = open_split(root / "data" / "prepared", "validation").images
    images = np.array(stored[: images_within(params.gate.images, math.prod(stored.shape[1:]))])
    measure = measure_detector if name == "detector" else measure_model
    try:
        new = measure(candidate, images, params, root)
    except DensitywatchError as error:
        return Decision(False, f"rejected: the candidate cannot be measured: {error}")
    if champion is None:
        return judge(new, None, params.gate.tolerance)
    try:
        old = measure(champion, images, params, root)
    except DensitywatchError as error:
        return Decision(False, f"rejected: the champion cannot be measured to compare with ({error}); {AFRESH}", new)
    return judge(new, old, params.gate.tolerance)


def judge(candidate: Measurement, champion: Measurement | None, tolerance: float) -> Decision:
    """Compare two measurements. A candidate passes when it is finite and at most a share `tolerance` worse."""
    shown = f"{candidate.measure} {candidate.value:.4f}"
    if not math.isfinite(candidate.value):
        return Decision(False, f"rejected: its {candidate.measure} is {candidate.value}, no finite number", candidate)
    if champion is None:
        return Decision(True, f"passed: {shown}, and there is no champion to compare it with", candidate)
    if champion.measure != candidate.measure:
        reason = f"rejected: it is measured by {candidate.measure} and the champion by {champion.measure}; {AFRESH}"
        return Decision(False, reason, candidate, champion)
    if not math.isfinite(champion.value):
        reason = (
            f"rejected: the champion's {champion.measure} is {champion.value}, so nothing can be compared; {AFRESH}"
        )
        return Decision(False, reason, candidate, champion)
    if candidate.value > champion.value + tolerance * abs(champion.value):
        allowed = f", more than the {tolerance:.1%} that params.gate.tolerance allows" if tolerance else ""
        reason = f"rejected: {shown} is worse than the champion's {champion.value:.4f}{allowed}"
        return Decision(False, reason, candidate, champion)
    return Decision(True, f"passed: {shown} next to the champion's {champion.value:.4f}", candidate, champion)


def measure_model(folder: Path, images: Pixels, params: Params, root: Path) -> Measurement:
    """The gate's measurement of the model in `folder`. Raises DensitywatchError when it cannot be measured."""
    model: Any = load_model_folder(folder)
    if images.shape[1:3] != (model.channels, stored_size(model)):
        ours, theirs = shape_of(images.shape[1], images.shape[2]), shape_of(model.channels, stored_size(model))
        raise DensitywatchError(f"it takes images of {theirs} and the prepared dataset has {ours}")
    cuda = torch.cuda.is_available() and params.device.accelerator in ("auto", "cuda")
    device = torch.device("cuda" if cuda else "cpu")
    model.to(device)
    offered = next((row for row in MEASURES if isinstance(model, row[0])), None)
    if offered is None:  # a model that only draws samples
        figure = sample_quality.quality_figure(model, params, root)
        return Measurement("FID of samples" + of_size(model, images), figure)
    _, measure, function = offered
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(params.seed)  # a bound draws latents: both models get the same ones
        step, seen = images_at_once(BATCH, model.size), at_size(images, model.size)
        parts = [
            function(model, torch.from_numpy(seen[start : start + step]).to(device)).double().cpu()
            for start in range(0, len(images), step)
        ]
    return Measurement(measure + of_size(model, images), float(torch.cat(parts).mean()))


def of_size(model: Any, images: Pixels) -> str:
    """The part of a measure's name that says at which size the model sees the images, where that is not theirs.

    Only measures of the same name are compared.
    """
    return "" if model.size == images.shape[2] else f" at {model.size} x {model.size}"


def shape_of(channels: int, size: int) -> str:
    return f"{size} x {size} pixels in {'grey' if channels == 1 else 'colour'}"


def _bits(log_prob: Tensor, x: Tensor) -> Tensor:
    return -log_prob / (math.log(2) * x[0].numel())


def _squared_error(model: Any, x: Tensor) -> Tensor:
    error: Tensor = (model.reconstruct(x).double() - x.double()) / 255
    return error.square().mean((1, 2, 3))


MEASURES: tuple[tuple[type, str, Callable[[Any, Tensor], Tensor]], ...] = (
    (ExactDensity, "bits/dim", lambda model, x: _bits(model.log_prob(x), x)),
    (Bounded, "ELBO bits/dim", lambda model, x: _bits(model.elbo(x), x)),
    (Reconstructor, "reconstruction error", _squared_error),
)
"""What a model may offer, the name of its measure, the values for a batch of images. The first that fits counts."""


def measure_detector(folder: Path, images: Pixels, params: Params, root: Path) -> Measurement:
    """The share of pairs that the detector in `folder` puts in the wrong order: 1 - AUROC on cut-and-paste images.

    Half of `images` stay as they are. The other half get a rectangle of another image (Li et al. 2021, "CutPaste"),
    with the seed of params. This is a rough measure of power; foreign images are for the benchmark alone.

    Its p-values must hold on the untouched half. Raises DensitywatchError when they do not.
    """
    loaded = detector.load(folder)
    half = len(images) // 2
    if half < 1:
        raise DensitywatchError("there are fewer than two validation images to measure it on")
    scores = [
        loaded.score(part[start : start + BATCH])
        for part in (images[:half], cut_and_paste(images[half:], np.random.default_rng(params.seed)))
        for start in range(0, len(part), BATCH)
    ]
    score = np.concatenate([part.score for part in scores])
    p = np.sort(np.concatenate([part.p_value for part in scores])[:half])
    if not np.isfinite(score).all():
        raise DensitywatchError(f"{int((~np.isfinite(score)).sum())} of its {len(score)} scores are not finite numbers")
    # the p-values of normal images are uniform: their largest distance from that, and what chance explains of it
    distance = float(np.abs(p - (np.arange(half) + 0.5) / half).max())
    limit = CHANCE * math.sqrt(1 / half + 1 / len(loaded.calibration)) + 1 / half + 1 / len(loaded.calibration)
    if distance > limit:
        raise DensitywatchError(
            f"its p-values do not hold on today's validation images (they stray by {distance:.2f} where chance explains"
            f" {limit:.2f}); calibrate it again"
        )
    # AUROC from the ranks of the outliers (Mann-Whitney): pairs in the right order / all pairs
    ranks = np.argsort(np.argsort(score, kind="stable"), kind="stable")
    outliers = len(score) - half
    right = ranks[half:].sum() - outliers * (outliers - 1) / 2
    return Measurement("cut-and-paste error", 1.0 - float(right) / (half * outliers))


def cut_and_paste(images: Pixels, rng: np.random.Generator) -> Pixels:
    """Each image with a rectangle from the same place of the next image, half as wide and half as high."""
    out = images.copy()
    size = images.shape[-1]
    side = max(1, size // 2)
    for i in range(len(images)):
        top, left = rng.integers(0, size - side + 1, 2)
        where = (slice(None), slice(top, top + side), slice(left, left + side))
        out[i][where] = images[(i + 1) % len(images)][where]
    return out
