"""Whether the false-discovery rate that is promised is the one realised, by resampling batches and streams of them."""

from __future__ import annotations

import numpy as np

from densitywatch.arrays import Floats
from densitywatch.detector import conformal, stream

BATCHES, BATCH = 1000, 500
OUTLIER_SHARES = (0.01, 0.05, 0.1)
STREAMS, STREAM_BATCH, MOST_BATCHES = 200, 60, 100
CLEAN, FEW = 0.98, 5
"""Of a stream: the share of batches without outliers, and the most outliers of the others."""


def realised_rates(
    normal: Floats, outlier: Floats, *, calibration_size: int, target: float, seed: int
) -> dict[float, dict[str, float]]:
    """Outlier share -> mean realised false-discovery rate and mean share of outliers found, over resampled batches.

    `normal` are scores of calibration and test images, which must be exchangeable (renewed.py says when they are not).
    They are split anew each time into a calibration set and a batch, because the promise is an average over calibration
    sets. The `conditional` rates use p-values that hold for a single calibration set.
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


def rates_in_streams(
    normal: Floats, outlier: Floats, *, calibration_size: int, target: float, seed: int
) -> dict[str, float]:
    """The share of false flags among all flags together, and the share of outliers found, where outliers are rare.

    Each of STREAMS streams has a calibration set of its own, and batches of the other normal images, none of which is
    in two. By the batch rule, `pooled_false_share` is false flags over flags, all streams together. By the stream's
    rule, it is false flags over the mean of max(1, flags), which is what that rule promises.
    """
    rng = np.random.default_rng(seed)
    normal = np.sort(normal)
    images = min(STREAM_BATCH, len(normal) - calibration_size)
    batches = min(MOST_BATCHES, (len(normal) - calibration_size) // images)
    batch, whole = np.zeros(2), np.zeros(2)  # false flags, true ones
    flagged, outliers = 0, 0
    for _ in range(STREAMS):
        drawn, past = rng.permutation(len(normal)), stream.Past()
        calibration = np.zeros(len(normal), dtype=bool)
        calibration[drawn[:calibration_size]] = True
        for others in drawn[calibration_size:][: batches * images].reshape(batches, images):
            known = int(rng.integers(1, min(FEW, images) + 1)) if rng.uniform() >= CLEAN else 0
            scores = normal[others]
            scores[:known] = rng.choice(outlier, known)
            p = conformal.p_values(normal[calibration], scores)
            found = conformal.benjamini_hochberg(p, target)
            batch += found[known:].sum(), found[:known].sum()
            decision = stream.decide(p, calibration_size, target, past)
            past = stream.after(past, int(decision.flags.sum()), decision.charged)
            whole += decision.flags[known:].sum(), decision.flags[:known].sum()
            outliers += known
        flagged += max(1, past.flagged)
    return {
        "pooled_false_share": float(batch[0] / max(1, batch.sum())),
        "power": float(batch[1] / max(1, outliers)),
        "stream_pooled_false_share": float(whole[0] / flagged),
        "stream_power": float(whole[1] / max(1, outliers)),
    }
