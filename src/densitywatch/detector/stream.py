"""Which images of a stream of batches are flagged, so that the share of false alarms holds over all flags together.

Benjamini-Hochberg in each batch bounds the mean of the batches' shares. Where most batches hold no outlier, nearly all
of their flags are false, and so is most of what is flagged over a month. Here every batch is decided with a budget:

    budget = q * max(1, images flagged so far) - false alarms charged so far

A batch is charged what its flags may have cost, and earns q for each flag. It never spends more than the budget.

The rule. For a few ranks r, `bound_r` bounds the chance that a normal image scores above the r-th highest calibration
score. N_r is how many images of the batch do. The batch flags these N_r images for the largest r with N_r >= k_r. It is
charged n * bound_r for the largest r with N_r >= k_r - alike, where one more scene of normal images would have been
enough. The numbers k_r are fixed before the batch is looked at, from the budget and the batch's size n alone.

What is proved. Let the images of different scenes be independent given the calibration set, a scene have at most
`alike` images, and all of them lie in one batch. Let r* be the rank by which a normal image i is flagged. Without the
scene of i, N_r* is still at least k_r* - alike. So i is above rank r(i), the largest r with N_r >= k_r - alike when its
scene is left out, for r* <= r(i). And r(i) says nothing about i. The chance of that is at most rho * bound_r(i), where
rho = max_r (true chance of rank r) / bound_r is a property of the calibration set. Leaving a scene out lowers N_r, so
bound_r(i) is at most what is charged for an image. Summed over images and batches, whatever the past was,

    E[false flags] <= rho * E[charged] <= rho * q * E[max(1, flags)]    for a given calibration set, after any batch.

The bounds are made so that rho is at most 1 on average over calibration sets, or, for `strict`, with probability
conformal.CONFIDENCE. This is the marginal false-discovery rate of the whole stream. Neither the outliers' scores nor
their number are assumed.

Sources: alpha-investing and the marginal rate (Foster, Stine 2008); any rule set by the past alone keeps it (Ramdas et
al. 2017, "Online control of the false discovery rate with decaying memory", theorem 1); batches, and what one p-value
more would have flagged as the charge (Zrnic et al. 2020, "The power of batching in multiple hypothesis testing").
BatchBH of the latter charges for p-values of 0. A conformal p-value is at least 1 / (n + 1), which makes the charge
above much smaller. Order statistics of the calibration set are Beta (Bates et al. 2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from densitywatch.detector.conformal import CONFIDENCE

STEP = 8
"""Ranks are 1, 8, 64, ...: fewer ranks, smaller bounds."""
DRAWS = 200_000
RISK, PATIENCE = 0.5, 50
"""A batch risks at most RISK / (PATIENCE + batches since the last flag) of the budget on flags that are false."""
AT_RISK = 1.0
"""False alarms of the budget that this share is taken of at most: a rich past does not pay for careless flags."""
BLOCKS = 64
"""Blocks that a batch is decided in at most, where the budget is too small for all of it at once."""


@dataclass(frozen=True)
class Past:
    """What earlier batches of the stream leave to the next one."""

    flagged: int = 0
    """Images flagged so far."""
    charged: float = 0.0
    """False alarms charged so far."""
    quiet: int = 0
    """Batches since the last one with a flag."""


@dataclass(frozen=True)
class Gates:
    """What it takes to be flagged in a batch, or in a block of one. Fixed before the batch is looked at."""

    images: int
    ranks: tuple[int, ...]
    """Ascending. Of the calibration images, rank - 1 or fewer score as high as a flagged image."""
    bounds: tuple[float, ...]
    """Of each rank: the chance that a normal image scores above it, as it is charged."""
    fewest: tuple[int, ...]
    """Of each rank: how many images of the batch must score above it before they are flagged."""


@dataclass(frozen=True)
class Decision:
    """A batch's flags and what they cost."""

    flags: NDArray[np.bool_]
    charged: float
    """False alarms."""
    gates: Gates
    """Of the first block, which is all of the batch where the budget allows it."""


def decide(
    p: ArrayLike, calibration_size: int, q: float, past: Past, *, alike: int = 1, strict: bool = False
) -> Decision:
    """Flag images of a batch, given what came before it.

    `p`: plain conformal p-values (conformal.p_values), one an image, in the batch's order. `q`: the share of false
    alarms over the whole stream. `alike`: images of one scene in a batch, at most. `strict`: hold the share for this
    calibration set with probability CONFIDENCE, not only on average over such sets.
    """
    if not 0 < q < 1:
        raise ValueError("q: expected a false-discovery rate between 0 and 1")
    if alike < 1:
        raise ValueError("alike: expected a number of images of at least 1")
    values = np.asarray(p, dtype=np.float64)
    flags = np.zeros(len(values), dtype=bool)
    flagged, charged, start, first = past.flagged, past.charged, 0, Gates(0, (), (), ())
    blocks = _blocks(len(values), calibration_size, q, past, alike, strict)
    for size in blocks:
        budget = q * max(1, flagged) - charged
        gates = gates_of(size, calibration_size, q, budget, _risk(past, len(blocks)), alike=alike, strict=strict)
        first = gates if start == 0 else first
        part = slice(start, start + size)
        charge = 0.0
        for rank, bound, fewest in zip(gates.ranks, gates.bounds, gates.fewest, strict=True):
            above = values[part] <= _p(rank, calibration_size) * (1 + 1e-12)
            count = int(np.count_nonzero(above))
            if count >= fewest:
                flags[part] = above
            if count >= fewest - alike:
                charge = size * bound
        flagged += int(flags[part].sum())
        charged += charge
        start += size
    return Decision(flags, charged - past.charged, first)


def after(past: Past, flagged: int, charged: float) -> Past:
    """The past of the next batch."""
    return Past(past.flagged + flagged, past.charged + charged, 0 if flagged else past.quiet + 1)


def fewest_to_flag(gates: Gates) -> int | None:
    """How many images must score above all calibration images before any is flagged; None where no number is enough."""
    return min(gates.fewest, default=None)


def gates_of(
    images: int, calibration_size: int, q: float, budget: float, risk: float, *, alike: int = 1, strict: bool = False
) -> Gates:
    """What it takes to be flagged among `images`, given the budget and the share `risk` of it that may be risked.

    A rank is used only where the budget covers its charge. Its number k pays for itself, q * k >= images * bound, and
    is so high that batches without outliers are expected to be charged at most the risk.
    """
    found: list[tuple[int, float, int]] = []
    all_ranks, factor = ranks(calibration_size), tail_factor(calibration_size, strict=strict)
    affordable = [r for r in all_ranks if images * factor * _p(r, calibration_size) <= budget]
    for rank in affordable:
        bound = factor * _p(rank, calibration_size)
        cost = images * bound
        allowed = risk * min(budget, AT_RISK) / len(affordable)
        scenes = _scenes(cost / alike, allowed / cost)
        fewest = max(1 if scenes == 0 else alike * (scenes + 1), math.ceil(cost / q - 1e-9))
        if fewest <= images:
            found.append((rank, bound, fewest))
    return (
        Gates(images, *(tuple(column) for column in zip(*found, strict=True))) if found else Gates(images, (), (), ())
    )


def ranks(calibration_size: int) -> list[int]:
    """1, 8, 64, ... up to a quarter of the calibration images."""
    found = [1]
    while STEP * found[-1] <= (calibration_size + 1) / 4:
        found.append(STEP * found[-1])
    return found


@lru_cache(maxsize=8)
def tail_factor(calibration_size: int, *, strict: bool = False) -> float:
    """What rank / (n + 1) is multiplied with, so that it bounds the true chance of all ranks in use together.

    The true chance to score above the r-th highest of n calibration scores is the r-th smallest of n uniform numbers.
    Returns the mean of max_r chance_r (n + 1) / r, or its quantile at CONFIDENCE for `strict`, from DRAWS draws with a
    fixed seed, rounded up in the second decimal (the standard error is 0.003).
    """
    used, n = np.asarray(ranks(calibration_size)), calibration_size
    rng = np.random.default_rng(1)
    # order statistics of uniform numbers are sums of exponential ones over the sum of all n + 1
    sums = np.cumsum(rng.gamma(np.diff(used, prepend=0), size=(DRAWS, len(used))), axis=1)
    whole = sums[:, -1] + rng.gamma(n + 1 - used[-1], size=DRAWS)
    worst = (sums * (n + 1) / used / whole[:, None]).max(axis=1)
    return math.ceil(100 * float(np.quantile(worst, CONFIDENCE) if strict else worst.mean())) / 100


def _blocks(images: int, calibration_size: int, q: float, past: Past, alike: int, strict: bool) -> list[int]:
    """Sizes of the blocks that a batch is decided in: one, or several where the budget does not cover rank 1.

    Images of one scene must not be cut apart, so a batch of scenes is one block.
    """
    if images == 0:
        return []
    budget = q * max(1, past.flagged) - past.charged
    cost = images * tail_factor(calibration_size, strict=strict) * _p(1, calibration_size)
    if cost <= budget or alike > 1 or 2 * cost > BLOCKS * budget:
        return [images]
    number = min(images, math.ceil(2 * cost / budget))
    return [len(part) for part in np.array_split(np.empty(images, dtype=np.int8), number)]


def _risk(past: Past, blocks: int) -> float:
    return RISK / (PATIENCE + past.quiet) / blocks


def _scenes(expected: float, chance: float) -> int:
    """The smallest j for which j or more rare scenes, `expected` on average, come with at most this chance.

    By P(at least j) <= expected^j / j!, which holds for independent scenes.
    """
    scenes, bound = 0, 1.0
    while bound > chance:
        scenes += 1
        bound *= expected / scenes
    return scenes


def _p(rank: int, calibration_size: int) -> float:
    return rank / (calibration_size + 1)
