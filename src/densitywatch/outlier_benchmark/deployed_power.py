"""What the deployed rule finds of each kind of outlier: the figure that counts for whoever reads the flagged images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from densitywatch.arrays import Floats
from densitywatch.detector.power import Power, power
from densitywatch.params import Params

SHARES = (0.05, 0.01)
"""Shares of outliers in a batch; the first is the headline."""
RESAMPLES, RESAMPLED_BATCHES = 100, 50
"""Bootstrap resamples of the images for the interval of the headline, and the batches of each."""


@dataclass(frozen=True)
class Found:
    """The power for one kind of outlier."""

    by_share: Mapping[float, Power]
    low: float
    high: float
    """The middle 95 % of what is found at the first share, over resamples of normal and outlying images."""


def power_by_kind(
    calibration: Floats, normal: Floats, outlying: Mapping[str, Floats], params: Params
) -> dict[str, Found]:
    """Kind of outlier -> what is found of it by the rule of params.inbox at detector.false_discovery_rate, worst first.

    Takes the detector's scores of the calibration images (sorted), of normal test images, and of each kind.
    """
    rule = partial(
        power,
        calibration,
        rate=params.detector.false_discovery_rate,
        control=params.inbox.control,
        alike=params.inbox.alike,
        strict=params.inbox.strict,
    )
    seed, result = params.seed, {}
    for kind, scores in outlying.items():
        by_share = {share: rule(normal, scores, share=share, seed=seed) for share in SHARES}
        rng = np.random.default_rng(seed)
        resampled = [
            rule(
                rng.choice(normal, len(normal)),
                rng.choice(scores, len(scores)),
                share=SHARES[0],
                batches=RESAMPLED_BATCHES,
                seed=seed + 1 + i,
            ).found
            for i in range(RESAMPLES)
        ]
        low, high = np.quantile(resampled, [0.025, 0.975])
        result[kind] = Found(by_share, float(low), float(high))
    return dict(sorted(result.items(), key=lambda item: [found.found for found in item[1].by_share.values()]))


def power_figures(found: Mapping[str, Found]) -> dict[str, Any]:
    """What metrics/outliers.json holds of it: power_at_5, false_alarms_at_5, and the same at 1 %."""
    figures = {}
    for share in SHARES:
        percent = round(100 * share)
        shares = {kind: round(one.by_share[share].found, 4) for kind, one in found.items()}
        false = {kind: round(one.by_share[share].false_alarms, 4) for kind, one in found.items()}
        figures[f"power_at_{percent}"] = {**shares, "min": min(shares.values())}
        figures[f"false_alarms_at_{percent}"] = {**false, "max": max(false.values())}
    return figures
