"""Whether the false-discovery rate that is promised is the one realised, by resampling batches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from densitywatch.detector import conformal

Floats = NDArray[np.float64]

BATCHES, BATCH = 1000, 500
OUTLIER_SHARES = (0.01, 0.05, 0.1)


def realised_rates(
    normal: Floats, outlier: Floats, *, calibration_size: int, target: float, seed: int
) -> dict[float, dict[str, float]]:
    """Outlier share -> mean realised false-discovery rate and mean share of outliers found, over resampled batches.

    Each time the scores of normal images (calibration and test images, which are exchangeable) are split anew into a
    calibration set and a batch, since the promise is one on average over calibration sets. `conditional`: the same with
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
            calibration[drawn[:calibration_size]] = True  # in order as they are, which spares sorting them every time
            others = normal[drawn[calibration_size : calibration_size + batch - outliers]]
            scores = np.concatenate([rng.choice(outlier, outliers, replace=False), others])
            plain = conformal.p_values(normal[calibration], scores)
            for p in (plain, conformal.conditional_p_values(plain, calibration_size)):
                flagged = conformal.benjamini_hochberg(p, target)
                results += [flagged[outliers:].sum() / max(1, flagged.sum()), flagged[:outliers].mean()]
        means = np.array(results).reshape(BATCHES, 4).mean(0)
        names = ("false_discovery_rate", "power", "conditional_false_discovery_rate", "conditional_power")
        rates[share] = dict(zip(names, (float(mean) for mean in means), strict=True))
    return rates
