"""Whether the false-discovery rate that is promised is the one realised, by resampling batches."""

from __future__ import annotations

import numpy as np

from densitywatch.arrays import Floats
from densitywatch.detector import conformal

BATCHES, BATCH = 1000, 500
OUTLIER_SHARES = (0.01, 0.05, 0.1)


def realised_rates(
    normal: Floats, outlier: Floats, *, calibration_size: int, target: float, seed: int
) -> dict[float, dict[str, float]]:
    """Outlier share -> mean realised false-discovery rate and mean share of outliers found, over resampled batches.

    `normal` are scores of calibration and test images, which are exchangeable. They are split anew each time into a
    calibration set and a batch, because the promise is an average over calibration sets. The `conditional` rates use
    p-values that hold for a single calibration set.
    """
    rng = np.random.default_rng(seed)
    batch = min(BATCH, len(normal) - calibration_size)
    normal = np.sort(normal)
    rates = {}
    for share in OUTLIER_SHARES:
        outliers = min(max(1, round(share * batch)), len(outlier))
        results = []
        for _ in range(BATCHES):
            drawn = rng.permutation(len(normal))
            calibration = np.zeros(len(normal), dtype=bool)
            calibration[drawn[:calibration_size]] = True  # a mask of sorted scores keeps them sorted
            others = normal[drawn[calibration_size : calibration_size + batch - outliers]]
            scores = np.concatenate([rng.choice(outlier, outliers, replace=False), others])
            plain = conformal.p_values(normal[calibration], scores)
            for p in (plain, conformal.conditional_p_values(plain, calibration_size)):
                flagged = conformal.benjamini_hochberg(p, target)
                # outliers come first in the batch: (false discoveries / flagged, found / outliers)
                results += [flagged[outliers:].sum() / max(1, flagged.sum()), flagged[:outliers].mean()]
        means = np.array(results).reshape(BATCHES, 4).mean(0)
        names = ("false_discovery_rate", "power", "conditional_false_discovery_rate", "conditional_power")
        rates[share] = dict(zip(names, (float(mean) for mean in means), strict=True))
    return rates
