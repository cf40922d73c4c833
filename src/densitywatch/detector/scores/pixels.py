"""Scores of the pixels themselves, without a network: the cheap rivals."""

from __future__ import annotations

import numpy as np

from densitywatch.arrays import Arrays, Floats
from densitywatch.detector.feature_cache import FeatureCache
from densitywatch.detector.gaussian_mixture import fit_mixture, mixture_nll, principal_axes
from densitywatch.detector.member import FittingData, member

MIXTURE_IMAGES = 16000
NEIGHBOUR_IMAGES, NEIGHBOURS = 10000, 5


def fit_pixel_mixture(data: FittingData) -> Arrays:
    """Fit a Gaussian mixture with 40 components on the first 64 principal components of the pixels."""

    def fit() -> Arrays:
        pixels = data.train.flat_pixels[:MIXTURE_IMAGES]
        return fit_mixture(pixels, dimensions=64, components=40, seed=data.seed, floor=1e-3, iterations=15)

    return data.train.once(("pixel mixture", data.seed), fit)  # two members need the same one


@member("as a whole it is unlike the normal images", fit=fit_pixel_mixture, reads=())
def pixel_mixture(features: FeatureCache, fitted: Arrays) -> Floats:
    """Minus log density of a Gaussian mixture on principal components of the pixels: the cheap rival of a network."""
    return mixture_nll(features.flat_pixels, fitted)


def _fit_neighbours(data: FittingData) -> Arrays:
    pixels = data.train.flat_pixels[:NEIGHBOUR_IMAGES]
    mean = pixels.mean(0)
    axes = np.ascontiguousarray(principal_axes(pixels, 64, data.seed), dtype=np.float32)
    return {"mean": mean, "axes": axes, "stored": (pixels - mean) @ axes.T}


@member("no normal image is near it", fit=_fit_neighbours, reads=())
def nearest_neighbours(features: FeatureCache, fitted: Arrays) -> Floats:
    """Mean squared distance to the five nearest of 10,000 training images on 64 principal components (Ramaswamy et al.
    2000, "Efficient algorithms for mining outliers")."""
    z = (features.flat_pixels - fitted["mean"]) @ fitted["axes"].T
    stored = fitted["stored"]
    squares = np.square(stored).sum(1)
    nearest = min(NEIGHBOURS, len(stored))
    # |z - s|^2 = |s|^2 - 2 z's + |z|^2; |z|^2 is the same for every s, so it is added after the nearest are chosen
    parts = [
        np.partition(squares - 2.0 * rows @ stored.T, nearest - 1, 1)[:, :nearest].mean(1) + np.square(rows).sum(1)
        for rows in np.array_split(z, max(1, len(z) // 250))  # 250 rows of distances at a time
    ]
    return np.concatenate(parts)
