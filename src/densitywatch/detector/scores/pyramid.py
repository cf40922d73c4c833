"""What pixelcnn_pyramid sees: more surprise than it expects in a part of the image."""

from __future__ import annotations

import numpy as np

from densitywatch.arrays import Arrays, Floats
from densitywatch.detector.feature_cache import FeatureCache
from densitywatch.detector.local.map_rarity import fit_standard, rarity_of_places, standardised
from densitywatch.detector.local.sources import SMALLEST
from densitywatch.detector.member import FittingData, member, with_prefix, without_prefix
from densitywatch.detector.tail_combination import fit_tail

MODEL = "pixelcnn_pyramid"
LEVEL = "coarse"
"""Of the names of what was fitted for each map. A detector that read other levels has others, and is refused."""


def _map(features: FeatureCache, fitted: Arrays) -> Floats:
    """The largest rarity over splits and windows at each place, nats, (B, h, w)."""
    maps = features.pyramid(MODEL)
    largest = np.full((len(maps), *maps.shape[2:]), -np.inf)
    for j in range(maps.shape[1]):
        one = without_prefix(f"{LEVEL}{j}", fitted)
        np.maximum(largest, rarity_of_places(standardised(maps[:, j], one), one), out=largest)
    return largest


def _fit(data: FittingData) -> Arrays:
    fitted: Arrays = {}
    for j, maps in enumerate(data.validation.pyramid(MODEL).swapaxes(0, 1)):
        standard = fit_standard(maps)
        # some maps have far longer tails than others: only what is as rare as each other is compared
        tail = fit_tail(standardised(maps, standard).max((1, 2)))
        fitted |= with_prefix(f"{LEVEL}{j}", standard | with_prefix("maximum", tail))
    return fitted | with_prefix("maximum", fit_tail(_map(data.validation, fitted).max((1, 2))))


def _places(features: FeatureCache, fitted: Arrays) -> Floats:
    return rarity_of_places(_map(features, fitted), fitted)


@member(
    "a part of it holds more surprises than the pyramid of densities expects there",
    fit=_fit,
    reads=(MODEL,),
    slow=True,
    places=_places,
    smallest=SMALLEST,
)
def pyramid_excess(features: FeatureCache, fitted: Arrays) -> Floats:
    """Surprise less its expectation, in the model's own standard deviations, in windows of 32 pixels at the coarsest
    level of pixelcnn_pyramid and its coarsest means (residuals of autoregressive models as in Wang et al. 2020,
    "Further analysis of outlier detection with deep generative models"), less what normal images show at the place, in
    their spreads. Of each split the largest place counts as -log P(a normal image's is as large), and of these the
    largest."""
    return np.asarray(_map(features, fitted).max((1, 2)))
