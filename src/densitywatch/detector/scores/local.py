"""Local members: how unlike normal images the most unusual small part of an image is (detector/local)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor

from densitywatch.arrays import Arrays, Floats
from densitywatch.detector.feature_cache import FeatureCache
from densitywatch.detector.local.filters import filter_maps
from densitywatch.detector.local.local_map import (
    Density,
    fit_local,
    image_means,
    kept_features,
    local_score,
    local_surprise,
)
from densitywatch.detector.local.sources import LITE0, OWN, SMALLEST, Source
from densitywatch.detector.member import FittingData, Member, Score, member, with_prefix, without_prefix


def _local(says: str, source: Source, density: Density) -> Callable[[Score], Member]:
    """Make a local member: the features of `source` under `density`."""

    def fit(data: FittingData) -> Arrays:
        return fit_local(data, source, density)

    def places(features: FeatureCache, fitted: Arrays) -> Floats:
        return local_surprise(features, source, fitted)

    return member(says, fit=fit, reads=(), smallest=SMALLEST, places=places, missing=source.missing)


@_local("a small part of it is not as it is at that place in normal images", OWN, "place")
def own_place(features: FeatureCache, fitted: Arrays) -> Floats:
    """Oriented energies and shades under a Gaussian for each place (Defard et al. 2021, PaDiM, with features that
    nothing was trained for), given what the picture shows as a whole."""
    return local_score(features, OWN, fitted)


@_local("a small part of it is unlike every part of normal images", OWN, "anywhere")
def own_anywhere(features: FeatureCache, fitted: Arrays) -> Floats:
    """The same features under one Gaussian mixture for all places."""
    return local_score(features, OWN, fitted)


@_local("a small part of it looks unlike that place in normal images", LITE0, "place")
def lite0_place(features: FeatureCache, fitted: Arrays) -> Floats:
    """Features of EfficientNet-Lite0 under a Gaussian for each place (Defard et al. 2021, PaDiM)."""
    return local_score(features, LITE0, fitted)


@_local("a small part of it looks unlike every part of normal images", LITE0, "anywhere")
def lite0_anywhere(features: FeatureCache, fitted: Arrays) -> Floats:
    """Features of EfficientNet-Lite0 under one Gaussian mixture for all places (Rippel et al. 2021: one Gaussian)."""
    return local_score(features, LITE0, fitted)


def _filters_of_whole(features: FeatureCache) -> Floats:
    """Mean and spread over the image of every filter feature, at half the size, (B, 2 D)."""

    def read(images: Tensor) -> Tensor:
        maps = filter_maps(images).flatten(2)
        return torch.cat([maps.mean(2), maps.std(2)], 1)

    return features.by_batch("filters of the whole image", read, max(SMALLEST, features.size // 2))


def _fit_own_whole(data: FittingData) -> Arrays:
    return _fit_whole(np.concatenate([_filters_of_whole(cache) for cache in (data.train, data.sample) if len(cache)]))


def _fit_whole(rows: Floats) -> Arrays:
    """One Gaussian with a shrunk covariance (Ledoit & Wolf 2004) of statistics of whole images (N, D)."""
    rows = rows.astype(np.float64)
    mean, spread = rows.mean(0), rows.std(0) + 1e-6
    # of one image there is none
    whole = len(rows) > 1
    covariance = (
        LedoitWolf(assume_centered=True).fit((rows - mean) / spread).covariance_ if whole else np.eye(len(mean))
    )
    # features that never change, as of black images, have no covariance that could be inverted
    precision = np.linalg.inv(covariance + 1e-6 * np.eye(len(covariance)))
    return {"mean": mean, "spread": spread, "precision": precision}


@member(
    "as a whole it is lighter, darker, sharper or rougher than normal images",
    fit=_fit_own_whole,
    reads=(),
    smallest=SMALLEST,
)
def own_whole(features: FeatureCache, fitted: Arrays) -> Floats:
    """Means and spreads of the filters over the whole image, under one Gaussian with a shrunk covariance (Ledoit & Wolf
    2004): what is everywhere a little different, which no single place shows."""
    return _whole_distance(_filters_of_whole(features), fitted)


def _fit_lite0_whole(data: FittingData) -> Arrays:
    weights = LITE0.weights()
    rows = [image_means(cache, LITE0, weights) for cache in (data.train, data.sample) if len(cache)]
    return _fit_whole(np.concatenate(rows)) | with_prefix("weights", weights)


@member(
    "as a whole it looks unlike normal images",
    fit=_fit_lite0_whole,
    reads=(),
    smallest=SMALLEST,
    missing=LITE0.missing,
)
def lite0_whole(features: FeatureCache, fitted: Arrays) -> Floats:
    """Means of EfficientNet-Lite0's features over the image, under one Gaussian with a shrunk covariance (Ledoit & Wolf
    2004): what `lite0_place` takes away before it looks at places."""
    maps = kept_features(features, LITE0, without_prefix("weights", fitted))
    return _whole_distance(maps.mean((2, 3)), fitted)


def _whole_distance(rows: Floats, fitted: Arrays) -> Floats:
    """Squared Mahalanobis distance of statistics of whole images (B, D) from those of normal ones, (B,)."""
    z = (rows - fitted["mean"]) / fitted["spread"]
    return np.asarray(((z @ fitted["precision"]) * z).sum(1))
