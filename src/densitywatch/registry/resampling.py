"""How much of a difference between two models chance explains: the paired bootstrap (Efron & Tibshirani 1993)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from densitywatch.arrays import Floats

DRAWS = 400
"""Bootstrap samples; the standard error that they give is within about 4 % of that of infinitely many."""
AT_ONCE = 50
"""Bootstrap samples whose figures are computed together."""

Figures = Callable[[Floats], Floats]
"""From counts (B, N), how often each image is taken, to the figure (B,) of each bootstrap sample."""


@dataclass(frozen=True)
class Measurement:
    """What the gate has measured of one model. Smaller is better for every measure."""

    measure: str
    value: float
    kind: str = "bits"
    """The key of params.gate.margin that holds for this measure."""
    figures: Figures | None = field(default=None, compare=False, repr=False)
    """The same figure of resampled images; None where there is a number alone, and then chance explains nothing."""
    trivial: Callable[[], Measurement] | None = field(default=None, compare=False, repr=False)
    """Measures the trivial model of the same kind on the same images: the floor."""
    missed: Missed | None = field(default=None, compare=False, repr=False)
    """Of a detector: what the rule in force does not find."""
    kinds: dict[str, Measurement] = field(default_factory=dict, compare=False, repr=False)
    """Of a detector: the same figure for each kind of defect by itself."""
    independent: int | None = field(default=None, compare=False, repr=False)
    """Number of groups of the images with a kind of defect. None of a figure of all images."""
    known: Known | None = field(default=None, compare=False, repr=False)
    """Of a detector: what it makes of the defects that a person has sorted."""


@dataclass(frozen=True)
class Known:
    """How a detector ranks the images of each kind of defect in a sorted folder among the good ones."""

    names: tuple[str, ...]
    """The images that could be read."""
    kinds: dict[str, Measurement]
    counts: Floats
    """Bootstrap samples of these images."""
    independent: dict[str, int]
    """Number of images of each kind, or of good ones where these are fewer."""


@dataclass(frozen=True)
class Missed:
    """The share of outlying images that the rule in force does not flag, 0 to 1."""

    value: float
    figures: Figures | None
    calibration: int
    """Number of calibration images: with few of them no p-value is small enough to be flagged."""
    judged: Floats | None = field(default=None, compare=False, repr=False)
    """Where it was measured on other images than the ranking, those of a judged draw: bootstrap samples of these."""
    independent: int = 0
    """Number of groups of these images."""


@dataclass(frozen=True)
class Difference:
    """Figure of one model minus figure of another, both on the same images."""

    value: float
    low: float
    """The lower end of the interval: one is `confidence` sure that the difference is above it."""
    high: float
    """The upper end: one is `confidence` sure that the difference is below it."""


def bootstrap_counts(groups: npt.NDArray[np.int64], seed: int, draws: int = DRAWS) -> Floats:
    """How often each image is in each bootstrap sample, (draws, N).

    groups: (N,) the group of each image; images of one group (a scene, a burst) are taken or left together, because
    they are alike.
    """
    _, members = np.unique(groups, return_inverse=True)
    count = int(members.max()) + 1
    taken = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    return taken[:, members].astype(np.float64)


def difference(
    candidate: Measurement | Missed,
    other: Measurement | Missed,
    counts: Floats,
    confidence: float,
    independent: int,
    share: float = 0.0,
) -> Difference:
    """candidate - other with an interval: difference -+ t * (standard deviation over the bootstrap samples).

    Both are resampled by the same counts, so what makes an image hard for both models cancels. `independent`: the
    number of groups, which gives Student's t its degrees of freedom. `share`: what the difference is compared with is
    this share of the other's figure, which chance moves too; the interval is as wide as that asks for.
    """
    value = candidate.value - other.value
    if candidate.figures is None or other.figures is None:
        return Difference(value, value, value)
    parts = [counts[i : i + AT_ONCE] for i in range(0, len(counts), AT_ONCE)]
    spread = np.concatenate([candidate.figures(part) - (1 + share) * other.figures(part) for part in parts])
    reach = float(student.ppf(confidence, max(1, independent - 1)) * spread.std(ddof=1))
    return Difference(value, value - reach, value + reach)


def mean_figures(values: Floats) -> Figures:
    """The mean of one value for each image, (N,)."""
    return lambda counts: counts @ values / counts.sum(1)


def wrong_pairs(
    normal: Floats,
    outlying: Floats,
    rows: npt.NDArray[np.int64] | slice = slice(None),
    normal_rows: slice = slice(None),
) -> Figures:
    """1 - AUROC: the share of pairs (normal, outlying) that scores put in the wrong order; a tie counts half.

    normal: (N,) scores of images as they are, those that `normal_rows` names. outlying: scores of the same images
    altered, or of other images, those that `rows` names. An image that is taken twice counts twice in both.
    """
    order = np.argsort(normal, kind="stable")
    ranked = normal[order]
    below, not_above = np.searchsorted(ranked, outlying, "left"), np.searchsorted(ranked, outlying, "right")
    ties = bool((below != not_above).any())

    def figures(counts: Floats) -> Floats:
        taken = np.zeros((len(counts), len(normal) + 1))  # normal images with one of the k lowest scores
        of_normal = counts[:, normal_rows]
        np.cumsum(of_normal[:, order], axis=1, out=taken[:, 1:])
        lower = (taken[:, below] + taken[:, not_above]) / 2 if ties else taken[:, below]
        # the mean over outlying images of how many normal ones lie below, over all pairs
        altered = counts[:, rows]
        pairs = of_normal.sum(1) * np.maximum(altered.sum(1), 1)
        return np.asarray(1.0 - np.einsum("bn,bn->b", altered, lower) / pairs)

    return figures


def one_figure(figures: Figures, images: int) -> float:
    """The figure of the images themselves, each taken once."""
    return float(figures(np.ones((1, images)))[0])
