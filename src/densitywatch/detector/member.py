"""What a member score is, and how one is entered under its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densitywatch.data.reading import Images
from densitywatch.detector.feature_cache import Readings

Floats = NDArray[np.floating[Any]]
Fitted = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Given:
    """What a fit function sees."""

    train: Readings
    """Training images for densities that need many; reading them with a network would take long."""
    sample: Readings
    """Other training images, few enough to be read by every model; none of them is in `train`."""
    all_train: Images
    """Every training image, left on disk: for what is trained in small batches."""
    validation: Readings
    seed: int
    declared: tuple[str, ...]
    steps: int
    """Length of the training of a score's own small network."""
    declared_steps: int
    """Length of the training of the judge of declared transformations."""


Score = Callable[[Readings, Fitted], Floats]
Fit = Callable[[Given], Fitted]


@dataclass(frozen=True)
class Member:
    """A member score and how what it needs is fitted."""

    name: str
    score: Score
    fit: Fit | None
    says: str
    """What a high score means, in plain words."""
    declared: bool
    """Whether it only makes sense with declared transformations."""
    reads: tuple[str, ...]
    """The models it reads, by their names in params.yaml; those of `detector.reads` must hold them."""
    slow: bool
    """Whether it takes many times the PixelCNN's own time; the benchmark measures it on fewer images."""


MEMBERS: dict[str, Member] = {}


def member(
    says: str,
    fit: Fit | None = None,
    *,
    reads: tuple[str, ...] = ("pixelcnn",),
    declared: bool = False,
    slow: bool = False,
) -> Callable[[Score], Score]:
    """Enter a function into MEMBERS under its own name."""

    def enter(score: Score) -> Score:
        MEMBERS[score.__name__] = Member(score.__name__, score, fit, says, declared, reads, slow)
        return score

    return enter


def part(arrays: dict[str, NDArray[Any]], name: str) -> Fitted:
    """The arrays stored under `name.`, without that prefix."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def named(name: str, arrays: Fitted) -> Fitted:
    """The arrays with `name.` before each key; `part` takes it away again."""
    return {f"{name}.{key}": value for key, value in arrays.items()}
