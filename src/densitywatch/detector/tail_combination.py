"""One score of several: the sum of minus log tail probabilities among normal images, the largest counted twice.

The sum is Fisher's combined test (1932) without its factor of two; the largest is Tippett's (1931). A member's surprise
at an image is -log P(a normal image scores as high): exponential with mean 1 among normal images, whatever the member's
own scale. The sum finds what all members see a little of, the largest what one is sure of and the others miss.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from densitywatch.arrays import Arrays, Floats

TAIL = 0.05
"""The share of normal images beyond which a generalised Pareto tail takes over from counting."""
KNOTS = 200
"""Quantiles that are kept below the tail."""


def combined(surprises: Sequence[Floats]) -> Floats:
    """One score of the members' surprises, (B,) each: their sum plus the largest, nats, (B,)."""
    return np.asarray(np.sum(surprises, axis=0) + np.max(surprises, axis=0))


def variance_ratio(total: Floats) -> float:
    """Variance of the members' combined surprise (N,) over its mean; at least 1.

    A surprise is exponential with mean 1 and variance 1, so the plain sum of k independent ones has mean k and variance
    k. Where members agree, the variance is larger, and the sum counts the same evidence this many times (Brown 1975, "A
    method for combining non-independent, one-sided tests of significance"). With the largest surprise counted twice
    (`combined`), independent members have a ratio of 1.4 to 2 already.
    """
    return max(1.0, float(total.var() / max(float(total.mean()), 1e-9)))


def fit_tail(score: Floats) -> Arrays:
    """What `tail_surprise` needs to know of a score's values (N,) on normal images."""
    # below the 95th percentile: 200 quantiles of the score
    levels = np.linspace(0.0, 1.0 - TAIL, KNOTS)
    knots = np.quantile(score, levels)
    # beyond it: excesses over the percentile follow a generalised Pareto distribution (Pickands 1975)
    beyond = score[score > knots[-1]] - knots[-1]
    if len(beyond) < 10 or not beyond.max() > 0:  # too few excesses for a fit
        shape, scale = 0.1, float(score.std()) or 1.0
    else:
        shape, _, scale = stats.genpareto.fit(beyond, floc=0.0)
    # a shape of 0 or below would let a single foreign image outweigh all other members without bound, or end the tail
    return {"knots": knots, "levels": levels, "tail": np.array([np.clip(shape, 0.1, 0.5), scale])}


def tail_surprise(score: Floats, fitted: Arrays) -> Floats:
    """-log P(a normal image scores as high), nats, (B,): counted up to the 95th percentile, fitted beyond.

    P(S > s) = (1 - F(s)) up to the percentile u, and 0.05 (1 + shape (s - u) / scale)^(-1 / shape) beyond it.
    """
    knots, levels = fitted["knots"], fitted["levels"]
    shape, scale = fitted["tail"]
    # -log(1 - F(s)) with F interpolated between the quantiles; constant at -log 0.05 beyond the last
    counted = -np.log1p(-np.interp(score, knots, levels))
    # minus the log of the Pareto factor; 0 up to the percentile
    beyond = np.log1p(shape * np.maximum(score - knots[-1], 0.0) / scale) / shape
    return np.asarray(counted + beyond)
