"""Which images of a stream of batches are flagged, so that the share of false alarms holds over all flags together.

Benjamini-Hochberg in each batch bounds the mean of the batches' shares. Where most batches hold no outlier, nearly all
of their flags are false, and so is most of what is flagged over a month. Here every batch is decided with a budget:

    budget = q * max(1, images flagged so far) - false alarms charged so far

A batch is charged what its flags may have cost, and earns q for each flag. It never spends more than the budget.

The rule. For a few ranks r, `bound_r` bounds the chance that a normal image scores above the r-th highest calibration
score. N_r is how many images of the batch do. Rank r opens when N_r >= k_r, and the batch flags the N_r images of the
largest r that opens. It is charged n * bound_r for the largest r that would have opened with `alike` images more above
every rank, one scene of normal images. The numbers k_r are fixed before the batch is looked at, from the budget and the
batch's size n alone. A rank that the budget does not cover opens only behind the rank before it, when that one has
flagged enough to pay for it, with a scene to spare.

What is proved. Let the images of different scenes be independent given the calibration set, a scene have at most
`alike` images, and all of them lie in one batch. Let r* be the rank by which a normal image i is flagged. Without the
scene of i, r* still opens with `alike` images more. So i is above rank r(i), the largest r that opens so without its
scene, for r* <= r(i). And r(i) says nothing about i. The chance of that is at most rho * bound_r(i), where
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
BLOCKS = 1000
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
    before: tuple[int, ...]
    """Of each rank: how many must score above the rank before it as well; 0 where the budget covers the rank."""

    @property
    def takes(self) -> list[tuple[int, int]]:
        """(rank, how many images must score above it before they are flagged) of each rank that the budget covers."""
        ranks = zip(self.ranks, self.fewest, self.before, strict=True)
        return [(rank, few) for rank, few, before in ranks if before == 0]


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
    flagged, charged, start, first = past.flagged, past.charged, 0, Gates(0, (), (), (), ())
    blocks = _blocks(len(values), calibration_size, q, past, alike, strict)
    # of each rank, how many images of each block are above it: counted for all blocks at once, which may be hundreds
    starts = np.cumsum([0, *blocks[:-1]])
    limits = {rank: _p(rank, calibration_size) * (1 + 1e-12) for rank in ranks(calibration_size)}
    above = {
        rank: np.add.reduceat(values <= limit, starts, dtype=np.int64).tolist() if blocks else []
        for rank, limit in limits.items()
    }
    for block, size in enumerate(blocks):
        budget = q * max(1, flagged) - charged
        gates = gates_of(size, calibration_size, q, budget, _risk(past, len(blocks)), alike=alike, strict=strict)
        first = gates if start == 0 else first
        counts = [above[rank][block] for rank in gates.ranks]
        charge, opened = 0.0, None
        for j, bound in enumerate(gates.bounds):
            if _opens(gates, counts, j, 0, alike):
                opened = j
            if _opens(gates, counts, j, alike, alike):
                charge = size * bound
        if opened is not None:
            part = slice(start, start + size)
            flags[part] = values[part] <= limits[gates.ranks[opened]]
            flagged += counts[opened]
        charged += charge
        start += size
    return Decision(flags, charged - past.charged, first)


def after(past: Past, flagged: int, charged: float) -> Past:
    """The past of the next batch."""
    return Past(past.flagged + flagged, past.charged + charged, 0 if flagged else past.quiet + 1)


def _opens(gates: Gates, counts: list[int], j: int, slack: int, alike: int) -> bool:
    """Whether the j-th rank's images are flagged, with `slack` images more above every rank.

    If it opens, it opens with `alike` more of slack when a scene is left out: each count drops by `alike` at most.
    If it opens with a slack of `alike`, the rank before it opens without any, so that images which pay are flagged.
    """
    if counts[j] + slack < gates.fewest[j]:
        return False
    if gates.before[j] == 0:
        return True
    return counts[j - 1] + slack >= gates.before[j] and _opens(gates, counts, j - 1, slack - alike, alike)


@lru_cache(maxsize=4096)  # blocks that flag nothing and cost nothing leave the budget as it was
def gates_of(
    images: int, calibration_size: int, q: float, budget: float, risk: float, *, alike: int = 1, strict: bool = False
) -> Gates:
    """What it takes to be flagged among `images`, given the budget and the share `risk` of it that may be risked.

    The budget covers the charge of a rank, or the flags of the rank before it do. Its number k pays for itself,
    q * k >= images * bound, and is so high that batches without outliers are expected to be charged at most the risk.
    """
    all_ranks, factor = ranks(calibration_size), tail_factor(calibration_size, strict=strict)
    costs = [images * factor * _p(rank, calibration_size) for rank in all_ranks]
    covered = sum(cost <= budget for cost in costs)
    found: list[tuple[int, float, int, int]] = []
    for rank, cost in zip(all_ranks, costs, strict=True):
        # one flag more, because the first one of a stream earns nothing
        before = 0 if cost <= budget else math.ceil((cost - budget) / q) + alike + 1
        if before and not found:
            break
        scenes = _scenes(cost / alike, risk * min(budget, AT_RISK) / covered / cost)
        fewest = max(1 if scenes == 0 else alike * (scenes + 1), math.ceil(cost / q - 1e-9))
        if max(fewest, before) > images:
            break
        found.append((rank, factor * _p(rank, calibration_size), fewest, before))
    return (
        Gates(images, *(tuple(column) for column in zip(*found, strict=True)))
        if found
        else Gates(images, (), (), (), ())
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
    size, larger = divmod(images, number)
    return [size + 1] * larger + [size] * (number - larger)


def _risk(past: Past, blocks: int) -> float:
    return RISK / (PATIENCE + past.quiet) / blocks


def _scenes(expected: float, chance: float) -> int:
    """The smallest j for which j or more rare scenes, `expected` on average, come with at most this chance.

    By P(at least j) <= expected^j / j!, which holds for independent scenes.
    """
    scenes, bound = 0, 0.0  # the bound's logarithm: it is large before it is small
    while bound > math.log(chance):
        scenes += 1
        bound += math.log(expected / scenes)
    return scenes


def _p(rank: int, calibration_size: int) -> float:
    return rank / (calibration_size + 1)
