"""What a member is: a score under its name, how it is fitted, and what it says.

    @member("what a high score means, in plain words", fit=fit_something)
    def some_score(features: FeatureCache, fitted: Arrays) -> Floats:
        \"\"\"Higher is more outlying, (B,). The docstring names the source.\"\"\"

A score that must learn something first names a fit function. It sees training and validation images alone and returns
arrays, which are stored with the detector and come back as `fitted`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from densitywatch.arrays import Arrays, Floats
from densitywatch.data.reading import Images
from densitywatch.detector.feature_cache import FeatureCache


@dataclass(frozen=True)
class FittingData:
    """What a fit function sees. Calibration and test images are not in it."""

    train: FeatureCache
    """Training images for densities that need many: read once, and not kept."""
    sample: FeatureCache
    """Other training images, few enough to be read by every model; none of them is in `train`."""
    all_train: Images
    """Every training image, left on disk: for networks that are trained in small batches."""
    validation: FeatureCache
    seed: int
    declared: tuple[str, ...]
    """Words of scores/transformations.py: transformations that count as outliers."""
    small_network_steps: int
    """Length of the training of a score's own small density."""
    declared_steps: int
    """Length of the training of the transformation judge."""
    tiles: int | None = None
    """Pixels a side of the tiles in which local members read pictures at their own resolution; None: not at all."""
    grouped: bool = False
    """Whether several images may be of one scene, as data.group says."""


Score = Callable[[FeatureCache, Arrays], Floats]
Fit = Callable[[FittingData], Arrays]
PlaceScore = Callable[[FeatureCache, Arrays], Floats]


@dataclass(frozen=True)
class Member:
    """A score that params.yaml may name under `detector.members`."""

    name: str
    score: Score
    """(features of B images, fitted arrays) -> (B,), higher is more outlying."""
    fit: Fit | None
    says: str
    """What a high score means, in plain words."""
    needs_declared: bool
    """Whether it only makes sense with declared transformations."""
    reads: tuple[str, ...]
    """The models that it reads, by their names in params.yaml; `detector.reads` must name them."""
    slow: bool
    """Whether it takes many times the PixelCNN's own time; the benchmark measures it on fewer images."""
    places: PlaceScore | None = None
    """(features, fitted arrays) -> (B, h, w): -log P(a normal image has a place as unusual), for a map of the image."""
    smallest: int = 1
    """Pixels a side that the detector has to read images at."""
    missing: Callable[[], str | None] | None = None
    """Why this machine cannot fit it, in one line, where that may be; calibrate then goes on without it."""


def member(
    says: str,
    fit: Fit | None = None,
    *,
    reads: tuple[str, ...] = ("pixelcnn",),
    needs_declared: bool = False,
    slow: bool = False,
    places: PlaceScore | None = None,
    smallest: int = 1,
    missing: Callable[[], str | None] | None = None,
) -> Callable[[Score], Member]:
    """Make a member of a score function; member_table.py lists it under the function's name."""

    def make(score: Score) -> Member:
        return Member(score.__name__, score, fit, says, needs_declared, reads, slow, places, smallest, missing)

    return make


def without_prefix(prefix: str, arrays: Arrays) -> Arrays:
    """The arrays stored under `prefix.`, without it."""
    start = f"{prefix}."
    return {key.removeprefix(start): value for key, value in arrays.items() if key.startswith(start)}


def with_prefix(prefix: str, arrays: Arrays) -> Arrays:
    """The arrays with `prefix.` before each key; `without_prefix` takes it away again."""
    return {f"{prefix}.{key}": value for key, value in arrays.items()}
