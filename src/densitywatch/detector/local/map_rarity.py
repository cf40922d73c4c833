"""How rare the values of maps are among normal images: at each place, and of a whole map.

    standard    mean and spread at each place, from validation images
    maximum     how large the largest value becomes (tail_combination.py)
    top         how large the mean of the largest 1 % becomes

Maps are (B, h, w): those of local features, and of what the pyramid sees.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from densitywatch.arrays import Arrays, Floats
from densitywatch.detector.member import with_prefix, without_prefix
from densitywatch.detector.tail_combination import fit_tail, tail_surprise

NEIGHBOURS = 5
"""Side of the square of places over which mean and spread of the map are averaged."""
TOP = 0.01
"""The share of places that the mean of the largest is over."""


def fit_rarity(maps: Floats) -> Arrays:
    """What `rarity` needs to know of normal images' maps (N, h, w)."""
    top, mean_of_top = statistics(maps)
    return with_prefix("maximum", fit_tail(top)) | with_prefix("top", fit_tail(mean_of_top))


def rarity(maps: Floats, fitted: Arrays) -> Floats:
    """How rare the largest value of each map and the mean of its largest 1 % are among normal images, nats, (B,)."""
    tails = (without_prefix(name, fitted) for name in ("maximum", "top"))
    return np.asarray(sum(tail_surprise(value, tail) for value, tail in zip(statistics(maps), tails, strict=True)))


def rarity_of_places(maps: Floats, fitted: Arrays, times: float = 1) -> Floats:
    """-log P(the largest value of a normal image's map is as high) at each place, nats, (B, h, w), negative where that
    is 0: see `local_surprise`. On a grid `times` as fine."""
    tail = without_prefix("maximum", fitted)
    below = np.minimum(maps - tail["knots"][0], 0.0) / tail["tail"][1]
    surprise, below = (interpolated(part, times) for part in (tail_surprise(maps, tail), below))
    return np.where(surprise > 0, surprise, below)


def interpolated(maps: Floats, times: float) -> Floats:
    """Maps (B, h, w) on a grid `times` as fine, interpolated linearly (bilinear).

    With places of 16 pixels the highest value then lies nearer to the defect.
    """
    if times == 1:
        return maps
    return np.asarray(F.interpolate(torch.from_numpy(maps)[:, None], scale_factor=times, mode="bilinear")[:, 0])


def enlarged(maps: Floats, shape: Sequence[int]) -> Floats:
    """Maps (B, h, w) on a finer grid: each place takes the value of the one that it lies in, so no value is lost."""
    down, across = (np.arange(fine) * coarse // fine for fine, coarse in zip(shape, maps.shape[1:], strict=True))
    return np.asarray(maps[:, down][:, :, across])


def statistics(maps: Floats) -> tuple[Floats, Floats]:
    """The largest value of each map (B, g, g), and the mean of its largest TOP, (B,) each."""
    flat = maps.reshape(len(maps), -1)
    count = max(1, round(TOP * flat.shape[1]))
    largest = np.partition(flat, flat.shape[1] - count, 1)[:, -count:]
    return largest.max(1), largest.mean(1)


def fit_standard(raw: Floats) -> Arrays:
    """Mean and spread of normal images' maps (N, g, g) at each place, each averaged over a square of neighbours."""

    def averaged(values: Floats) -> Floats:
        padded = F.pad(torch.as_tensor(values)[None, None], (NEIGHBOURS // 2,) * 4, mode="replicate")
        return np.asarray(F.avg_pool2d(padded, NEIGHBOURS, 1)[0, 0])

    values = raw.astype(np.float64)
    mean = averaged(values.mean(0))
    variance = averaged(np.square(values - mean).mean(0))
    # places that never change, as in black images, must not divide by zero
    least = 1e-2 * np.sqrt(variance.mean()) + 1e-6
    return {"mean": mean, "spread": np.maximum(np.sqrt(variance), least)}


def standardised(raw: Floats, standard: Arrays) -> Floats:
    """(map - mean) / spread at each place, (B, g, g)."""
    return np.asarray((raw - standard["mean"]) / standard["spread"])
