"""The figures of an assessment: what is found, how often good images are flagged, and what needs no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from densitywatch.arrays import Floats, Pixels
from densitywatch.detector.conformal import images_for
from densitywatch.detector.image_statistics import webp_nats
from densitywatch.detector.realised_alarms import expected_range
from densitywatch.outlier_benchmark.auroc import separation

LEVELS = (0.01, 0.05)
RESAMPLES = 1000
ROUNDING = 1e-9
RESAMPLED = 20_000_000
"""Numbers that the bootstrap holds at once, at most: with many images there are fewer resamples, at least 100."""
FLOORS = {"mean intensity": ("brighter", "darker"), "WebP length": ("longer", "shorter")}
"""Statistics that need no model, and what a high and a low value is called."""


def image_auroc(good: Floats, bad: Floats, seed: int) -> list[float]:
    """[AUROC, low, high] of scores: the middle 95 % of bootstrap resamples of both sets."""
    resamples = int(np.clip(RESAMPLED // (len(good) + len(bad)), 100, RESAMPLES))
    return separation(good, bad, resamples=resamples, seed=seed)["auroc"]


def share_at(p: Floats, level: float, calibration_size: int) -> dict[str, Any]:
    """The share of p-values (N,) that are at most `level`, with the exact binomial interval of 95 %.

    A level that no p-value can reach has no share; `words` says how many calibration images it would take.
    """
    if calibration_size < images_for(level):
        smallest = 1.0 / (calibration_size + 1)
        words = (
            f"out of reach: {calibration_size:,} calibration images give no p-value below {smallest:.2g};"
            f" {level:.0%} takes {images_for(level):,}"
        )
        return {"level": level, "share": None, "words": words}
    count = int((p <= level).sum())
    interval = stats.binomtest(count, len(p)).proportion_ci(0.95)
    return {
        "level": level,
        "count": count,
        "images": len(p),
        "share": count / len(p),
        "low": float(interval.low),
        "high": float(interval.high),
    }


def false_alarms(p: Floats, level: float, calibration_size: int) -> dict[str, Any]:
    """`share_at` of good images, and in `expected` where 95 % of such shares lie when the promise holds."""
    found = share_at(p, level, calibration_size)
    if found["share"] is not None:
        low, high = expected_range(level, calibration_size, len(p))
        found |= {"expected": [low, high], "above": found["share"] > high}
    return found


def floor_values(images: Pixels) -> Floats:
    """The statistics of FLOORS of images (B, C, H, W), (B, 2)."""
    return np.column_stack([images.mean((1, 2, 3), dtype=np.float64), webp_nats(images)])


def floors(good: Floats, bad: Floats, seed: int) -> list[dict[str, Any]]:
    """For each of FLOORS, values (N, 2) and (M, 2): `auroc` in its better direction, which `name` says."""
    found = []
    for column, (name, (high, low)) in enumerate(FLOORS.items()):
        auroc, sign = image_auroc(good[:, column], bad[:, column], seed), high
        if auroc[0] < 0.5:
            auroc, sign = image_auroc(-good[:, column], -bad[:, column], seed), low
        found.append({"name": f"{name} ({sign})", "auroc": auroc})
    return found


def figures(good: Mapping[str, Floats], bad: Mapping[str, Floats], calibration_size: int, seed: int) -> dict[str, Any]:
    """The figures of one kind of bad images; each mapping has `score`, `p_value` (N,) and `floors` (N, 2)."""
    auroc = image_auroc(good["score"], bad["score"], seed)
    trivial = floors(good["floors"], bad["floors"], seed)
    return {
        "images": len(bad["score"]),
        "auroc": auroc,
        "found": [share_at(bad["p_value"], level, calibration_size) for level in LEVELS],
        "floors": trivial,
        "below_floor": [floor["name"] for floor in trivial if auroc[0] < floor["auroc"][0] - ROUNDING],
    }
