"""A simple density: a Gaussian mixture on principal components, fitted once and kept as plain arrays."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

Floats = NDArray[np.floating[Any]]
Arrays = dict[str, NDArray[Any]]

EXACT = 1024
"""Columns up to which principal components come from the covariance itself: 32 x 32 grey pixels."""


def fit_mixture(
    x: Floats, *, dimensions: int, components: int, seed: int, floor: float = 1e-2, iterations: int = 40
) -> Arrays:
    """Fit principal components and a full-covariance Gaussian mixture on them to x (N, D).

    dimensions and components are upper limits: no more than the data bear (N / 10 dimensions; a component needs about
    as many images as it has dimensions, twice over). `floor` is added to every variance, as a share of the mean one.
    """
    x = np.asarray(x, dtype=np.float64)
    kept = max(1, min(dimensions, x.shape[1], len(x) // 10))
    mean = x.mean(0)
    axes = np.eye(kept) if kept == x.shape[1] else principal_axes(x, kept, seed)
    z = (x - mean) @ axes.T
    spread = float(z.var(0).mean()) or 1.0
    mixture = GaussianMixture(
        max(1, min(components, len(x) // (2 * kept + 2))),
        reg_covar=floor * spread,
        max_iter=iterations,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # more iterations change the density by next to nothing
        mixture.fit(z)
    precision = mixture.precisions_cholesky_  # (K, d, d), upper triangular: the columns whiten
    constant = np.log(mixture.weights_) + np.log(np.diagonal(precision, axis1=1, axis2=2)).sum(1)
    return {
        "mean": mean,
        "axes": axes,
        "centres": np.einsum("kd,kde->ke", mixture.means_, precision),
        "precision": precision,
        "constant": constant - 0.5 * kept * np.log(2.0 * np.pi),
    }


def principal_axes(x: Floats, kept: int, seed: int) -> Floats:
    """The `kept` leading principal components of x (N, D), as rows.

    Exact up to EXACT columns; beyond that by random projections (Halko et al. 2011), whose time and memory do not grow
    with the square of D.
    """
    if x.shape[1] <= EXACT:
        vectors: Floats = np.linalg.eigh(np.cov(x, rowvar=False))[1]
        return vectors[:, ::-1][:, :kept].T
    kept = min(kept, *x.shape)
    axes: Floats = PCA(kept, svd_solver="randomized", random_state=seed).fit(x).components_
    return axes


def mixture_nll(x: Floats, fitted: Arrays) -> Floats:
    """Negative log-density of x (N, D) on the fitted principal components, nats, (N,)."""
    z = (np.asarray(x, dtype=np.float64) - fitted["mean"]) @ fitted["axes"].T
    logs = np.empty((len(z), len(fitted["constant"])))
    for k, (centre, precision, constant) in enumerate(
        zip(fitted["centres"], fitted["precision"], fitted["constant"], strict=True)
    ):
        logs[:, k] = constant - 0.5 * np.square(z @ precision - centre).sum(1)
    top = logs.max(1)
    return np.asarray(-(top + np.log(np.exp(logs - top[:, None]).sum(1))))
