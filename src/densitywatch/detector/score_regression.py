"""What a score should be, given what an image is made of: a ridge regression of the score's mean and spread.

Any density finds an intricate image improbable and a plain one probable, so the plain score mostly ranks images by how
intricate they are. What counts is how much more improbable an image is than others of the same composition. This
generalises the correction by a compressor's length (Serrà et al. 2020) from one regressor with slope 1 to many with a
fitted curve.
"""

from __future__ import annotations

import numpy as np

from densitywatch.arrays import Arrays, Floats

COMPONENTS = 24
"""At most this many principal components of the composition are regressors."""
RIDGE = 200.0
"""The penalty on squared coefficients."""
WIDEST = 4.0
"""Regressors are cut at this many standard deviations, so that a foreign image gets the answer for the nearest edge."""
FURTHEST = 0.999
"""Images that lie further out than this share of the fitting images get the answer for the same direction at that
distance: no correction is extrapolated."""
FOLDS = 5


def fit_score_regression(composition: Floats, score: Floats) -> Arrays:
    """Fit mean and log-spread of score (N,) given composition (N, F): a quadratic on its principal components.

    The spread is fitted to residuals of images that the mean was not fitted on (5 folds).
    """
    # whitened principal components: x standardised, S = x'x / N = V diag(values) V', regressors x V / sqrt(values)
    centre, scale = composition.mean(0), composition.std(0) + 1e-6
    x = (composition - centre) / scale
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    kept = np.argsort(values)[::-1][: min(COMPONENTS, max(1, len(x) // 20))]
    axes = vectors[:, kept] / np.sqrt(values[kept] + 1e-6)
    fitted = {"centre": centre, "scale": scale, "axes": axes.T, "furthest": np.array([np.inf])}
    distances = np.linalg.norm(_regressors(composition, fitted), axis=1)
    fitted["furthest"] = np.quantile(distances, [FURTHEST])
    regressors = _regressors(composition, fitted)
    terms = _quadratic(regressors)
    # residuals out of fold: image i is predicted by coefficients of the other folds
    fold = np.arange(len(score)) % min(FOLDS, len(score))
    residual = np.empty(len(score))
    for k in range(fold.max() + 1):
        residual[fold == k] = score[fold == k] - terms[fold == k] @ _ridge(terms[fold != k], score[fold != k])
    # log |residual| is linear in the regressors; the small terms keep the logarithm of a residual of 0 finite
    log_spread = np.log(np.abs(residual) + 1e-3 * residual.std() + 1e-12)
    linear = np.column_stack([np.ones(len(regressors)), regressors])
    return {**fitted, "mean": _ridge(terms, score), "log_spread": _ridge(linear, log_spread)}


def standardised_residual(composition: Floats, score: Floats, fitted: Arrays) -> Floats:
    """(score - predicted mean) / predicted spread of scores (B,) of images of this composition (B, F): (B,)."""
    regressors = _regressors(composition, fitted)
    spread = np.exp(fitted["log_spread"][0] + regressors @ fitted["log_spread"][1:])
    return np.asarray((score - _quadratic(regressors) @ fitted["mean"]) / spread)


def _regressors(composition: Floats, fitted: Arrays) -> Floats:
    """Whitened principal components of the composition, cut at WIDEST and at a length of `furthest`, (B, k)."""
    x = np.clip(((composition - fitted["centre"]) / fitted["scale"]) @ fitted["axes"].T, -WIDEST, WIDEST)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x * np.minimum(1.0, fitted["furthest"] / np.maximum(length, 1e-12)))


def _quadratic(x: Floats) -> Floats:
    """1, x_i, and x_i x_j for i <= j: (B, 1 + k + k (k + 1) / 2)."""
    i, j = np.triu_indices(x.shape[1])
    return np.column_stack([np.ones(len(x)), x, x[:, i] * x[:, j]])


def _ridge(terms: Floats, target: Floats) -> Floats:
    """Coefficients b of ridge regression, (T'T + P) b = T'y with P = RIDGE on the diagonal.

    The first coefficient is the intercept, which is not shrunk.
    """
    penalty = np.full(terms.shape[1], RIDGE)
    penalty[0] = 1e-9
    return np.linalg.solve(terms.T @ terms + np.diag(penalty), terms.T @ target)
