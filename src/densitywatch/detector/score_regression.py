"""How high a score is bound to be, given what an image is made of: a ridge regression of a score's mean and spread.

An intricate image is improbable and a plain one probable under any density, so that the plain score mostly ranks images
by intricacy. What counts is how much more improbable an image is than others of the same make. That generalises the
correction by a compressor's length (Serrà et al. 2020) from one figure with slope one to many with a fitted curve.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Arrays = dict[str, NDArray[Any]]

COMPONENTS = 24
RIDGE = 200.0
WIDEST = 4.0
"""Standard deviations at which inputs are cut, so that the answer for a foreign image is that for the nearest edge."""
FOLDS = 5


def fit_expectation(given: Floats, score: Floats) -> Arrays:
    """Fit mean and log-spread of score (N,) given (N, F): a quadratic on the leading principal components of `given`.

    The spread is fitted to residuals of images that the mean was not fitted on (5 folds).
    """
    centre, scale = given.mean(0), given.std(0) + 1e-6
    x = (given - centre) / scale
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    kept = np.argsort(values)[::-1][: min(COMPONENTS, max(1, len(x) // 20))]
    axes = vectors[:, kept] / np.sqrt(values[kept] + 1e-6)
    fitted = {"centre": centre, "scale": scale, "axes": axes.T}
    linear = _components(given, fitted)
    terms = _quadratic(linear)
    fold = np.arange(len(score)) % min(FOLDS, len(score))
    residual = np.empty(len(score))
    for k in range(fold.max() + 1):
        residual[fold == k] = score[fold == k] - terms[fold == k] @ _ridge(terms[fold != k], score[fold != k])
    log_spread = np.log(np.abs(residual) + 1e-3 * residual.std() + 1e-12)
    slopes = np.column_stack([np.ones(len(linear)), linear])
    return {**fitted, "mean": _ridge(terms, score), "log_spread": _ridge(slopes, log_spread)}


def beyond_expectation(given: Floats, score: Floats, fitted: Arrays) -> Floats:
    """How many spreads each score (B,) lies above what `given` (B, F) lets expect."""
    linear = _components(given, fitted)
    spread = np.exp(fitted["log_spread"][0] + linear @ fitted["log_spread"][1:])
    return np.asarray((score - _quadratic(linear) @ fitted["mean"]) / spread)


def _components(given: Floats, fitted: Arrays) -> Floats:
    return np.clip(((given - fitted["centre"]) / fitted["scale"]) @ fitted["axes"].T, -WIDEST, WIDEST)


def _quadratic(x: Floats) -> Floats:
    i, j = np.triu_indices(x.shape[1])
    return np.column_stack([np.ones(len(x)), x, x[:, i] * x[:, j]])


def _ridge(terms: Floats, target: Floats) -> Floats:
    """Coefficients of ridge regression; the first, the intercept's, is not shrunk."""
    penalty = np.full(terms.shape[1], RIDGE)
    penalty[0] = 1e-9
    return np.linalg.solve(terms.T @ terms + np.diag(penalty), terms.T @ target)
