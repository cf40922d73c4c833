"""Member scores of the outlier detector: named functions, higher is more outlying, each with its source.

A member is a function `name(seen: Readings, fitted: Fitted) -> (B,)` under `@member`; `params.yaml` names it under
`detector.members`. One that must learn something first names a fit function, which sees training and validation images
and returns arrays; they are stored with the detector and come back as `fitted`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densitywatch.errors import ParamsError
from densitywatch.outliers.readings import Readings

Floats = NDArray[np.floating[Any]]
Fitted = dict[str, NDArray[Any]]
Score = Callable[[Readings, Fitted], Floats]
Fit = Callable[[Readings, Readings, np.random.Generator], Fitted]
"""Of training images (a sample), validation images and a random generator."""


@dataclass(frozen=True)
class Member:
    """A member score and how what it needs is fitted."""

    name: str
    score: Score
    fit: Fit | None
    says: str
    """What a high score means, as the end of the sentence "this image is unusual because ..."."""


MEMBERS: dict[str, Member] = {}


def member(says: str, fit: Fit | None = None) -> Callable[[Score], Score]:
    """Enter a function into MEMBERS under its own name."""

    def enter(score: Score) -> Score:
        name = score.__name__
        MEMBERS[name] = Member(name, score, fit, says)
        return score

    return enter


def find_member(name: str) -> Member:
    """The member of that name. Raises ParamsError, naming those that exist."""
    if name not in MEMBERS:
        raise ParamsError(f"detector.members: no score '{name}'; there is: {', '.join(sorted(MEMBERS))}")
    return MEMBERS[name]


@member("the density model finds it improbable")
def pixelcnn_nll(seen: Readings, fitted: Fitted) -> Floats:
    """Raw negative log-likelihood, nats (Bishop 1994, "Novelty detection and neural network validation").

    Known to fail (Nalisnick et al. 2019, "Do deep generative models know what they don't know?"): simple foreign images
    are more probable than normal ones. Kept to show it.
    """
    return seen.nll("pixelcnn")
