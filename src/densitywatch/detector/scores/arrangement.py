"""What an image is made of, and how that is arranged: the detector's own members.

`composition` is a density of what an image is made of. The arrangement scores take a density of pixels, of gradient
histograms or of surprise, and subtract what an image of the same composition gets (score_regression.py).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from densitywatch.arrays import Arrays, Floats
from densitywatch.detector.feature_cache import FeatureCache
from densitywatch.detector.gaussian_mixture import fit_mixture, mixture_nll
from densitywatch.detector.image_statistics import cell_sums
from densitywatch.detector.member import FittingData, member, with_prefix, without_prefix
from densitywatch.detector.score_regression import fit_score_regression, standardised_residual
from densitywatch.detector.scores.pixels import fit_pixel_mixture


def _composition(features: FeatureCache) -> Floats:
    """What the image is made of: its statistics, and the logs of the PixelCNN's expected surprise and its variance."""
    _, expected, variance = (part.sum((1, 2), dtype=np.float64) for part in features.surprise_statistics("pixelcnn"))
    return np.column_stack([features.composition_statistics, np.log(expected + 1.0), np.log(variance + 1.0)])


def _fit_composition(data: FittingData) -> Arrays:
    statistics = _composition(data.sample)
    centre, scale = statistics.mean(0), statistics.std(0) + 1e-6
    mixture = fit_mixture((statistics - centre) / scale, dimensions=30, components=5, seed=data.seed)
    return {"centre": centre, "scale": scale, **with_prefix("mixture", mixture)}


@member("its shades, edges and texture do not go together as they do in normal images", fit=_fit_composition)
def composition(features: FeatureCache, fitted: Arrays) -> Floats:
    """What the image is made of, wherever in the image it is, under a Gaussian mixture: quantiles of shades and edges,
    WebP bits, the PixelCNN's expected surprise (statistics under a simple density: Morningstar et al. 2021, DoSE)."""
    # 10 standard deviations are far enough; beyond them one statistic would decide alone
    statistics = np.clip((_composition(features) - fitted["centre"]) / fitted["scale"], -10.0, 10.0)
    return mixture_nll(statistics, without_prefix("mixture", fitted))


Read = Callable[[FeatureCache], Floats]
"""What a density is fitted on: (B, D) of B images."""


def _fit_arrangement(data: FittingData, mixture: Arrays, read: Read) -> Arrays:
    """The mixture, and the regression of its negative log-density on the composition of data.sample."""
    regressors = _composition(data.sample)
    regression = fit_score_regression(regressors, mixture_nll(read(data.sample), mixture))
    return with_prefix("mixture", mixture) | with_prefix("expectation", regression)


def _arrangement(features: FeatureCache, fitted: Arrays, read: Read) -> Floats:
    """Spreads by which the negative log-density exceeds that of images of the same composition, (B,)."""
    nll = mixture_nll(read(features), without_prefix("mixture", fitted))
    return standardised_residual(_composition(features), nll, without_prefix("expectation", fitted))


def _pixels(features: FeatureCache) -> Floats:
    return features.flat_pixels


def _gradients(features: FeatureCache) -> Floats:
    return features.gradient_histograms


def _fit_pixel_arrangement(data: FittingData) -> Arrays:
    return _fit_arrangement(data, fit_pixel_mixture(data), _pixels)


@member("its light and dark parts lie where normal images do not have them", fit=_fit_pixel_arrangement)
def pixel_arrangement(features: FeatureCache, fitted: Arrays) -> Floats:
    """How much less probable its pixels are, under a Gaussian mixture on their principal components, than those of
    images made of the same shades, edges and texture (score_regression.py)."""
    return _arrangement(features, fitted, _pixels)


def fit_gradient_arrangement(data: FittingData, dimensions: int = 100, components: int = 80) -> Arrays:
    """Fit a Gaussian mixture with `components` components on the first `dimensions` principal components of the
    gradient histograms, and the regression of its score."""
    mixture = fit_mixture(
        data.train.gradient_histograms,
        dimensions=dimensions,
        components=components,
        seed=data.seed,
        floor=1e-3,
        iterations=6,
    )
    return _fit_arrangement(data, mixture, _gradients)


@member("its edges run where normal images do not have them", fit=fit_gradient_arrangement)
def gradient_arrangement(features: FeatureCache, fitted: Arrays) -> Floats:
    """The same as `pixel_arrangement` for histograms of signed gradient directions (Dalal & Triggs 2005)."""
    return _arrangement(features, fitted, _gradients)


def _surprise_blocks(features: FeatureCache) -> Floats:
    """Square roots of the surprise in each cell of a 7 x 7 grid, (B, 49); fewer cells for images of fewer pixels."""
    maps = features.surprise("pixelcnn")
    blocks = cell_sums(maps, min(7, *maps.shape[1:])).reshape(len(maps), -1)
    return np.asarray(np.sqrt(np.maximum(blocks, 0.0)))


def _fit_surprise_pattern(data: FittingData) -> Arrays:
    # the mixture is fitted on one half of the sample and the regression on both: surprise is slow to compute, so there
    # is no further sample
    blocks = _surprise_blocks(data.sample)
    return fit_mixture(blocks[: (len(blocks) + 1) // 2], dimensions=32, components=5, seed=data.seed)


@member("surprise lies where it does not in normal images", fit=_fit_surprise_pattern)
def surprise_pattern(features: FeatureCache, fitted: Arrays) -> Floats:
    """Where the PixelCNN's surprise lies, on a 7 x 7 grid, under a Gaussian mixture (DoSE, Morningstar et al. 2021)."""
    return mixture_nll(_surprise_blocks(features), fitted)


def _fit_surprise_arrangement(data: FittingData) -> Arrays:
    return _fit_arrangement(data, _fit_surprise_pattern(data), _surprise_blocks)


@member("the density model is surprised in places where it is not in normal images", fit=_fit_surprise_arrangement)
def surprise_arrangement(features: FeatureCache, fitted: Arrays) -> Floats:
    """The same as `pixel_arrangement` for the PixelCNN's surprise on a 7 x 7 grid."""
    return _arrangement(features, fitted, _surprise_blocks)
