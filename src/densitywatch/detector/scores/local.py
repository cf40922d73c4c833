"""Local members: how unlike normal images the most unusual small part of an image is (detector/local)."""

from __future__ import annotations

from densitywatch.arrays import Arrays, Floats
from densitywatch.detector.feature_cache import FeatureCache
from densitywatch.detector.local.local_map import Density, fit_local, local_score, local_surprise
from densitywatch.detector.local.sources import LITE0, OWN, Source
from densitywatch.detector.member import Fit, FittingData, PlaceScore, member


def _fit(source: Source, density: Density) -> Fit:
    def fit(data: FittingData) -> Arrays:
        return fit_local(data, source, density)

    return fit


def _places(source: Source) -> PlaceScore:
    def places(features: FeatureCache, fitted: Arrays) -> Floats:
        return local_surprise(features, source, fitted)

    return places


@member(
    "a small part of it is not as it is at that place in normal images",
    fit=_fit(OWN, "place"),
    reads=(),
    places=_places(OWN),
)
def own_place(features: FeatureCache, fitted: Arrays) -> Floats:
    """Oriented energies and shades under a Gaussian for each place (Defard et al. 2021, PaDiM, with features that
    nothing was trained for)."""
    return local_score(features, OWN, fitted)


@member(
    "a small part of it is unlike every part of normal images",
    fit=_fit(OWN, "anywhere"),
    reads=(),
    places=_places(OWN),
)
def own_anywhere(features: FeatureCache, fitted: Arrays) -> Floats:
    """The same features under one Gaussian mixture for all places."""
    return local_score(features, OWN, fitted)


@member(
    "a small part of it looks unlike that place in normal images",
    fit=_fit(LITE0, "place"),
    reads=(),
    places=_places(LITE0),
    missing=LITE0.missing,
)
def lite0_place(features: FeatureCache, fitted: Arrays) -> Floats:
    """Features of EfficientNet-Lite0 under a Gaussian for each place (Defard et al. 2021, PaDiM)."""
    return local_score(features, LITE0, fitted)


@member(
    "a small part of it looks unlike every part of normal images",
    fit=_fit(LITE0, "anywhere"),
    reads=(),
    places=_places(LITE0),
    missing=LITE0.missing,
)
def lite0_anywhere(features: FeatureCache, fitted: Arrays) -> Floats:
    """Features of EfficientNet-Lite0 under one Gaussian mixture for all places (Rippel et al. 2021: one Gaussian)."""
    return local_score(features, LITE0, fitted)
