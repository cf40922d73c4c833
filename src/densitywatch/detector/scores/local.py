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
from densitywatch.detector.local.local_map import Density, fit_local, local_score, local_surprise
from densitywatch.detector.local.sources import LITE0, OWN, SMALLEST, Source
from densitywatch.detector.member import FittingData, Member, Score, member


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
    nothing was trained for)."""
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


def _whole(features: FeatureCache) -> Floats:
    """Mean and spread over the image of every filter feature, at half the size, (B, 2 D)."""

    def read(images: Tensor) -> Tensor:
        maps = filter_maps(images).flatten(2)
        return torch.cat([maps.mean(2), maps.std(2)], 1)

    return features.by_batch("filters of the whole image", read, max(SMALLEST, features.size // 2))


def _fit_whole(data: FittingData) -> Arrays:
    rows = np.concatenate([_whole(data.train), _whole(data.sample)]).astype(np.float64)
    mean, spread = rows.mean(0), rows.std(0) + 1e-6
    covariance = LedoitWolf(assume_centered=True).fit((rows - mean) / spread).covariance_
    # features that never change, as of black images, have no covariance that could be inverted
    precision = np.linalg.inv(covariance + 1e-6 * np.eye(len(covariance)))
    return {"mean": mean, "spread": spread, "precision": precision}


@member(
    "as a whole it is lighter, darker, sharper or rougher than normal images",
    fit=_fit_whole,
    reads=(),
    smallest=SMALLEST,
)
def own_whole(features: FeatureCache, fitted: Arrays) -> Floats:
    """Means and spreads of the filters over the whole image, under one Gaussian with a shrunk covariance (Ledoit & Wolf
    2004): what is everywhere a little different, which no single place shows."""
    z = (_whole(features) - fitted["mean"]) / fitted["spread"]
    return np.asarray(((z @ fitted["precision"]) * z).sum(1))
