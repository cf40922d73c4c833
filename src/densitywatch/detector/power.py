"""How much of what does not belong the deployed rule finds: Benjamini-Hochberg over a batch's p-values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from densitywatch.arrays import Floats
from densitywatch.detector import conformal

BATCH, BATCHES = 500, 1000


@dataclass(frozen=True)
class Power:
    """Shares over many batches, each 0 to 1."""

    found: float
    """Of the outlying images, those that are flagged."""
    false_alarms: float
    """Of all images that are flagged in all batches together, those that are normal; 0 where none is flagged."""
    false_discovery_rate: float
    """The same for each batch, averaged over batches: what is bounded, on average over calibration sets."""


def power(
    calibration: Floats,
    normal: Floats,
    outlying: Floats,
    *,
    rate: float,
    share: float,
    batch: int = BATCH,
    batches: int = BATCHES,
    seed: int = 0,
) -> Power:
    """Flag batches of `batch` images, a `share` of them outlying (at least one), at a false-discovery rate of `rate`.

    Takes the detector's scores of the calibration images (sorted), of normal and of outlying images. Images of a batch
    are drawn with replacement, so that a few hundred images give batches of the size asked. The calibration set is used
    as it is. The same seed draws the same images: two detectors that scored the same images are compared on the same
    batches.
    """
    rng = np.random.default_rng(seed)
    p_normal, p_outlying = conformal.p_values(calibration, normal), conformal.p_values(calibration, outlying)
    outliers = max(1, round(share * batch))
    found, false, proportions = 0, 0, 0.0
    for _ in range(batches):
        p = np.concatenate([rng.choice(p_outlying, outliers), rng.choice(p_normal, batch - outliers)])
        flagged = conformal.benjamini_hochberg(p, rate)
        right, wrong = int(flagged[:outliers].sum()), int(flagged[outliers:].sum())
        found, false = found + right, false + wrong
        proportions += wrong / max(1, right + wrong)
    return Power(found / (outliers * batches), false / max(1, found + false), proportions / batches)
