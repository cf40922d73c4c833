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


def _fit_composition(data: FittingData) -> Arrays:
    statistics = data.train.composition_statistics
    centre, scale = statistics.mean(0), statistics.std(0) + 1e-6
    mixture = fit_mixture(
        (statistics - centre) / scale,
        dimensions=statistics.shape[1],
        components=40,
        seed=data.seed,
        floor=1e-3,
        iterations=8,
    )
    return {"centre": centre, "scale": scale, **with_prefix("mixture", mixture)}


@member("its shades, edges and texture do not go together as they do in normal images", fit=_fit_composition, reads=())
def composition(features: FeatureCache, fitted: Arrays) -> Floats:
    """What the image is made of, wherever in the image it is, under a Gaussian mixture: quantiles of shades and edges,
    and the length of its WebP file (statistics under a simple density: Morningstar et al. 2021, DoSE)."""
    # 30 standard deviations are far enough; beyond them one statistic would decide alone
    statistics = np.clip((features.composition_statistics - fitted["centre"]) / fitted["scale"], -30.0, 30.0)
    return mixture_nll(statistics, without_prefix("mixture", fitted))


Read = Callable[[FeatureCache], Floats]
"""What a density is fitted on, or what its score is expected from: (B, D) of B images."""
SURPRISE_GRID = 10
"""Cells a side of the grid on which surprise is summed."""


def _composition(features: FeatureCache) -> Floats:
    """What the image is made of, without a network."""
    return features.composition_statistics


def _expected_surprise(features: FeatureCache) -> Floats:
    """What the image is made of, and the logs of the PixelCNN's expected surprise and of its variance."""
    _, expected, variance = (part.sum((1, 2), dtype=np.float64) for part in features.surprise_statistics("pixelcnn"))
    return np.column_stack([features.composition_statistics, np.log(expected + 1.0), np.log(variance + 1.0)])


def _fit_arrangement(data: FittingData, mixture: Arrays, read: Read, given: Read) -> Arrays:
    """The mixture, and the regression of its negative log-density on what the images of data.sample are made of."""
    regression = fit_score_regression(given(data.sample), mixture_nll(read(data.sample), mixture))
    return with_prefix("mixture", mixture) | with_prefix("expectation", regression)


def _arrangement(features: FeatureCache, fitted: Arrays, read: Read, given: Read) -> Floats:
    """Spreads by which the negative log-density exceeds that of images of the same composition, (B,)."""
    nll = mixture_nll(read(features), without_prefix("mixture", fitted))
    return standardised_residual(given(features), nll, without_prefix("expectation", fitted))


def _pixels(features: FeatureCache) -> Floats:
    return features.flat_pixels


def _gradients(features: FeatureCache) -> Floats:
    return features.gradient_histograms


def _fit_pixel_arrangement(data: FittingData) -> Arrays:
    return _fit_arrangement(data, fit_pixel_mixture(data), _pixels, _composition)


@member("its light and dark parts lie where normal images do not have them", fit=_fit_pixel_arrangement, reads=())
def pixel_arrangement(features: FeatureCache, fitted: Arrays) -> Floats:
    """How much less probable its pixels are, under a Gaussian mixture on their principal components, than those of
    images made of the same shades, edges and texture (score_regression.py)."""
    return _arrangement(features, fitted, _pixels, _composition)


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
    return _fit_arrangement(data, mixture, _gradients, _composition)


@member("its edges run where normal images do not have them", fit=fit_gradient_arrangement, reads=())
def gradient_arrangement(features: FeatureCache, fitted: Arrays) -> Floats:
    """The same as `pixel_arrangement` for histograms of signed gradient directions (Dalal & Triggs 2005)."""
    return _arrangement(features, fitted, _gradients, _composition)


def _surprise_cells(features: FeatureCache) -> Floats:
    """Square roots of the surprise in each cell of a 10 x 10 grid, (B, 100); fewer cells for images of fewer pixels."""
    maps = features.surprise("pixelcnn")
    cells = cell_sums(maps, min(SURPRISE_GRID, *maps.shape[1:])).reshape(len(maps), -1)
    return np.asarray(np.sqrt(np.maximum(cells, 0.0)))


def _fit_surprise_pattern(data: FittingData) -> Arrays:
    # mixture and regression are fitted on the same images: surprise is slow to compute, so there is no further sample
    return fit_mixture(
        _surprise_cells(data.sample), dimensions=80, components=8, seed=data.seed, floor=1e-3, iterations=10
    )


@member("surprise lies where it does not in normal images", fit=_fit_surprise_pattern)
def surprise_pattern(features: FeatureCache, fitted: Arrays) -> Floats:
    """Where the PixelCNN's surprise lies, on a 10 x 10 grid, under a Gaussian mixture (DoSE, Morningstar et al.
    2021)."""
    return mixture_nll(_surprise_cells(features), fitted)


def _fit_surprise_arrangement(data: FittingData) -> Arrays:
    return _fit_arrangement(data, _fit_surprise_pattern(data), _surprise_cells, _expected_surprise)


@member("the density model is surprised in places where it is not in normal images", fit=_fit_surprise_arrangement)
def surprise_arrangement(features: FeatureCache, fitted: Arrays) -> Floats:
    """The same as `pixel_arrangement` for the PixelCNN's surprise on a 10 x 10 grid, given also how much surprise the
    PixelCNN itself expects of the image."""
    return _arrangement(features, fitted, _surprise_cells, _expected_surprise)
