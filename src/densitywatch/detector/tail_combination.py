"""One score of several: the sum of minus log tail probabilities among normal images (Fisher 1932's combined test)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.floating[Any]]
Arrays = dict[str, NDArray[Any]]

TAIL = 0.05
"""The share of normal images beyond which a generalised Pareto tail takes over from counting."""
KNOTS = 200


def overlap(total: Floats) -> float:
    """How many times over a sum of surprises (N,) counts the same evidence: its variance over its mean, at least 1.

    A sum of k independent surprises has mean k and variance k; where they say the same, the variance is larger and the
    sum divided by this ratio is the evidence that is there (Brown 1975, "A method for combining non-independent,
    one-sided tests of significance").
    """
    return max(1.0, float(total.var() / max(float(total.mean()), 1e-9)))


def fit_tail(score: Floats) -> Arrays:
    """What `tail_surprise` needs to know of a score's values (N,) on normal images."""
    levels = np.linspace(0.0, 1.0 - TAIL, KNOTS)
    knots = np.quantile(score, levels)
    beyond = score[score > knots[-1]] - knots[-1]
    if len(beyond) < 10 or not beyond.max() > 0:
        shape, scale = 0.1, float(score.std()) or 1.0
    else:
        shape, _, scale = stats.genpareto.fit(beyond, floc=0.0)
    # a shape of 0 or below would let a single foreign image outweigh all other members without bound, or end the tail
    return {"knots": knots, "levels": levels, "tail": np.array([np.clip(shape, 0.1, 0.5), scale])}


def tail_surprise(score: Floats, fitted: Arrays) -> Floats:
    """-log P(a normal image scores as high), nats, (B,): counted up to the 95th percentile, fitted beyond."""
    knots, levels = fitted["knots"], fitted["levels"]
    shape, scale = fitted["tail"]
    counted = -np.log1p(-np.interp(score, knots, levels))
    beyond = np.log1p(shape * np.maximum(score - knots[-1], 0.0) / scale) / shape
    return np.asarray(counted + beyond)
