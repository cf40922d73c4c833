"""A simple density: a Gaussian mixture on principal components, fitted once and kept as plain arrays."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.linalg import solve_triangular
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning

from densitywatch.arrays import Arrays, Floats

NEGLIGIBLE = 1e-7
"""A row's share in a Gaussian below which the row does not count for its covariance."""
TOLERANCE = 1e-3
"""Nats a row by which the likelihood has to grow for one more iteration."""
EXACT = 1024
"""Principal components of at most this many columns come from the covariance itself; 1024 are 32 x 32 grey pixels."""


def fit_mixture(
    x: Floats, *, dimensions: int, components: int, seed: int, floor: float = 1e-2, iterations: int = 40
) -> Arrays:
    """Fit principal components and a full-covariance Gaussian mixture on them to x (N, D).

    `dimensions` and `components` are upper limits. N rows support at most N / 10 dimensions, and a component for every
    2 (dimensions + 1) rows. `floor` is added to every variance, as a share of the mean variance.
    """
    x = np.asarray(x, dtype=np.float64)
    kept = max(1, min(dimensions, x.shape[1], len(x) // 10))
    mean = x.mean(0)
    axes = np.eye(kept) if kept == x.shape[1] else principal_axes(x, kept, seed)
    z = (x - mean) @ axes.T
    spread = float(z.var(0).mean()) or 1.0
    count = max(1, min(components, len(x) // (2 * kept + 2)))
    return {"mean": mean, "axes": axes, **_fit_gaussians(z, count, seed=seed, floor=floor * spread, most=iterations)}


def _fit_gaussians(z: Floats, count: int, *, seed: int, floor: float, most: int) -> Arrays:
    """Expectation maximisation of `count` Gaussians from a k-means start, as scikit-learn's; at most `most` iterations.

    Among dozens of Gaussians in a hundred dimensions nearly every row belongs to one or two. Leaving out shares below
    NEGLIGIBLE makes the covariances, by far the slowest step, ten times faster and changes them by less than 1e-6.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than Gaussians
        labels = KMeans(count, n_init=1, random_state=seed).fit(z).labels_
    shares = np.eye(count)[labels]
    fitted, before = _gaussians(z, shares, floor), -np.inf
    for _ in range(most):
        # expectation: the share of Gaussian k in row n is w_k N_k(z_n) / p(z_n), with p = sum over k of w_k N_k
        logs = _log_densities(z, fitted)
        total = _log_sum(logs)
        # maximisation: weights, means and covariances by these shares
        fitted = _gaussians(z, np.exp(logs - total[:, None]), floor)
        if abs(total.mean() - before) < TOLERANCE:
            break
        before = float(total.mean())
    return fitted


def _gaussians(z: Floats, shares: Floats, floor: float) -> Arrays:
    """The K Gaussians that fit rows z (N, d), of which row n belongs to Gaussian k by shares[n, k].

    Each is kept as a matrix P with P P' = inverse covariance, its mean times P, and the log of weight times
    normalisation. So its log density is constant - |z P - centre|^2 / 2, with no inverse at scoring time.
    """
    n, d = z.shape
    weights = shares.sum(0) + 10 * np.finfo(np.float64).eps  # rows in each Gaussian; never 0
    means = (shares.T @ z) / weights[:, None]
    precision = np.empty((len(weights), d, d))
    for k, mean in enumerate(means):
        rows = shares[:, k] > NEGLIGIBLE
        away = z[rows] - mean
        covariance = (shares[rows, k, None] * away).T @ away / weights[k]
        covariance[np.diag_indices(d)] += floor
        # covariance = L L' (Cholesky), so P = inverse of L, transposed: upper triangular
        precision[k] = solve_triangular(np.linalg.cholesky(covariance), np.eye(d), lower=True).T
    # log w_k + log det P - d/2 log(2 pi); the determinant of a triangular matrix is the product of its diagonal
    constant = np.log(weights / n) + np.log(np.diagonal(precision, axis1=1, axis2=2)).sum(1)
    return {
        "centres": np.einsum("kd,kde->ke", means, precision),
        "precision": precision,
        "constant": constant - 0.5 * d * np.log(2.0 * np.pi),
    }


def _log_densities(z: Floats, fitted: Arrays) -> Floats:
    """Log of weight times density of each Gaussian, (N, K)."""
    logs = np.empty((len(z), len(fitted["constant"])))
    for k, (centre, precision, constant) in enumerate(
        zip(fitted["centres"], fitted["precision"], fitted["constant"], strict=True)
    ):
        logs[:, k] = constant - 0.5 * np.square(z @ precision - centre).sum(1)
    return logs


def _log_sum(logs: Floats) -> Floats:
    """log sum exp of each row, with the largest term taken out so that nothing underflows."""
    top = logs.max(1)
    return np.asarray(top + np.log(np.exp(logs - top[:, None]).sum(1)))


def principal_axes(x: Floats, kept: int, seed: int) -> Floats:
    """The `kept` leading principal components of x (N, D), as rows.

    Exact up to EXACT columns; beyond that by random projections (Halko et al. 2011), whose time and memory do not grow
    with the square of D.
    """
    if x.shape[1] <= EXACT:
        vectors: Floats = np.linalg.eigh(np.cov(x, rowvar=False))[1]  # columns, by ascending variance
        return vectors[:, ::-1][:, :kept].T
    kept = min(kept, *x.shape)
    axes: Floats = PCA(kept, svd_solver="randomized", random_state=seed).fit(x).components_
    return axes


def mixture_nll(x: Floats, fitted: Arrays) -> Floats:
    """Negative log-density of x (N, D) on the fitted principal components, nats, (N,)."""
    z = (np.asarray(x, dtype=np.float64) - fitted["mean"]) @ fitted["axes"].T
    return -_log_sum(_log_densities(z, fitted))
