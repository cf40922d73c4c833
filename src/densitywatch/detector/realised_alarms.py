"""Do the promised rates hold on groups that were never seen? The share of them at or below a p-value, and its range."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from densitywatch.data.groups.draw import one_of_each_group

LEVELS = (0.01, 0.05, 0.1)
INSIDE = 0.95


@dataclass(frozen=True)
class Realised:
    """What a promised rate came to."""

    promised: float
    share: float
    """Of one image of each group: the share with p <= promised."""
    low: float
    high: float
    """The range in which INSIDE of such shares lie when the promise holds."""
    every_image: float
    """The same share of all images, every group counted the same."""
    groups: int
    images: int

    @property
    def holds(self) -> bool:
        return self.low <= self.share <= self.high


def realised_alarms(p: ArrayLike, groups: ArrayLike | None, calibration_size: int, *, seed: int) -> list[Realised]:
    """The realised shares at LEVELS of the p-values of normal images that nothing was fitted or calibrated on.

    `groups`: the number of each image's group; None: every image counts by itself. `calibration_size`: number of
    calibration groups, or of calibration images. Images of one group are no independent evidence, so the share and its
    range are of one image of each group.
    """
    values = np.asarray(p, dtype=np.float64)
    numbers = np.arange(len(values)) if groups is None else np.asarray(groups)
    one = values[one_of_each_group(numbers, seed)]
    _, member = np.unique(numbers, return_inverse=True)
    weight = (1.0 / np.bincount(member))[member] / len(one)
    found = []
    for level in LEVELS:
        low, high = expected_range(level, calibration_size, len(one))
        every = float(weight[values <= level].sum())
        found.append(Realised(level, float((one <= level).mean()), low, high, every, len(one), len(values)))
    return found


def expected_range(level: float, calibration_size: int, count: int) -> tuple[float, float]:
    """The range in which INSIDE of the shares of `count` new images with p <= `level` lie when the promise holds.

    Given n exchangeable calibration scores without ties, the chance of p <= k / (n + 1) for a new image is
    Beta(k, n + 1 - k) over calibration sets (Vovk 2012), so the number of such images is beta-binomial.
    """
    n = calibration_size
    rank = min(n, int(np.floor(level * (n + 1) + 1e-9)))
    if rank == 0:  # no p-value is so small
        return 0.0, 0.0
    outside = (1.0 - INSIDE) / 2.0
    low, high = (float(stats.betabinom.ppf(q, count, rank, n + 1 - rank)) for q in (outside, 1.0 - outside))
    return low / count, high / count
