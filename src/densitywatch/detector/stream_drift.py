"""Has a stream of batches moved? A test that may be looked at after every batch and does not trust images of one scene.

Two questions are asked of every batch, and their answers are bets. A bet is an e-value: a number that is never
negative and on average at most 1 while nothing has moved. Capital that is bet batch after batch is a test martingale,
and the chance that it ever reaches 1 / a is at most a (Ville 1939). So the alarm may be looked at as often as one
likes (Vovk, Gammerman, Shafer 2005, chapter 8; Ramdas et al. 2023, "Game-theoretic statistics and safe anytime-valid
inference").

1. **Calibration.** Is the share of images that score beyond a calibration image larger than normal images allow?
   Assumed: calibration images are independent, and every image of a normal batch, whatever came before, is distributed
   like them. Images of one batch may depend on each other in any way: an average of e-values is an e-value under any
   dependence. The true share beyond the k-th of n calibration scores is at most Beta(k, n + 1 - k), so a bound on it
   holds for the calibration set at hand, for all batches at once.
2. **Earlier batches.** Does a batch rank too high or too low among the earlier batches of its size? Assumed: normal
   batches of about one size are exchangeable. Ranks of exchangeable batches are independent and each equally likely,
   whatever happens inside a batch. This question learns from the stream how much batches differ, which no calibration
   set can tell, and so sees small changes soon; but it sees none that was there before the first batch.

A change may begin with any batch. So capital is split over all batches that it may begin with, and each part is bet
from there on (a mixture of Shiryaev-Roberts kind; Shin, Ramdas, Rinaldo 2023, "E-detectors"). The parts sum to 1, so
the promise holds for a stream of any length.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from densitywatch.arrays import Floats

HIGH = (0.002, 0.01, 0.05, 0.2, 0.5)
"""Question 1: shares of the calibration images that score highest; the k-th highest is what images are held against."""
LOW = (0.01, 0.05, 0.2, 0.5)
"""The same for the lowest scores: a stream that is less surprising than calibration has moved as well."""
STAKES = (0.05, 0.25, 0.9)
"""Parts of the capital that are bet in question 1."""
SHIFTS = (0.5, 1.0, 2.0, 4.0)
"""Question 2: by how many standard deviations between batches a batch may have moved, up or down."""
LEARN = 20
"""Earlier batches of a size that are needed before question 2 bets."""
MEASURES = ("surprise", "spread", "bits_per_dim", "brightness", "sharpness")
"""What question 2 ranks batches by, see `look`: two of the scores, and means of three numbers of every image."""
HORIZON = 2880
"""Batches that a change is equally likely to begin with: a month of one every 15 minutes. Later ones get less."""
FIRST = 0.25
"""Question 1: the part of the capital that is bet on a stream that was not normal from its first batch on. Question 2
cannot see such a change."""
CALIBRATION_SHARE = 0.5
"""The part of the promised share of false alarms that question 1 may use up. Half of it is for the bounds."""


@dataclass(frozen=True)
class Look:
    """What is kept of a batch: all that the test needs of it."""

    images: int
    shares: tuple[float, ...]
    """Question 1: shares of the images beyond calibration images, one for each of HIGH and LOW."""
    measures: tuple[float | None, ...]
    """Question 2: a number for each of MEASURES; None for one that the batch does not have."""
    tie: float
    """A random number from 0 to 1 that ranks batches which measure the same."""


@dataclass(frozen=True)
class Finding:
    """What a stream shows, up to its last batch or to the alarm."""

    evidence: float
    """An alarm is raised at 1 / a: 100 for a promise of at most 1 in 100 streams."""
    alarm: int | None
    """The batch that raised the alarm, counted from 0."""
    since: int | None
    """The batch that the change most likely began with, counted from 0; None without an alarm."""
    moved: str | None = None
    """What won most when the alarm was raised: "calibration", or a measure and its direction as in "brightness up"."""


def look(score: ArrayLike, p: ArrayLike, images: Mapping[str, ArrayLike], calibration: Floats, *, tie: float) -> Look:
    """What to keep of a batch of N >= 1 images.

    `score`, `p`: scores and p-values, (N,). `images`: for each of MEASURES beyond the first two that is known, a number
    for every image, (N,), NaN where there is none. `calibration`: the scores of the calibration images, sorted
    ascending. `tie`: a number in [0, 1) that has nothing to do with the order in which batches come, for example made
    of a hash of the batch.
    """
    scores, values = np.asarray(score, dtype=np.float64), np.asarray(p, dtype=np.float64)
    n, ordered = len(calibration), np.sort(scores)
    # strictly beyond, so that equal scores never count for more than they should
    above = [len(scores) - np.searchsorted(ordered, calibration[n - k], side="right") for k in _ranks(n, HIGH)]
    below = [np.searchsorted(ordered, calibration[k - 1], side="left") for k in _ranks(n, LOW)]
    measures: dict[str, float | None] = {name: _mean(numbers) for name, numbers in images.items()}
    measures["surprise"] = float(-np.log(values).mean())  # how unusual the images are, the most unusual ones above all
    measures["spread"] = float(np.abs(2 * values - 1).mean())  # at the ends of what is normal, or in the middle of it
    shares = tuple(float(count) / len(scores) for count in (*above, *below))
    return Look(len(scores), shares, tuple(measures.get(name) for name in MEASURES), tie)


def _mean(numbers: ArrayLike) -> float | None:
    known = np.asarray(numbers, dtype=np.float64)
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else None


def follow(looks: Sequence[Look], calibration_size: int, a: float) -> Finding:
    """Follow a stream of batches in their order, up to the first alarm.

    At most a share `a` of normal streams, of any length, ever has an alarm. Looks at prefixes of a stream agree: the
    same batches give the same finding, and batches that come later change nothing about an alarm.
    """
    if not 0 < a < 1:
        raise ValueError("a: expected a share of streams between 0 and 1")
    if not looks:
        return Finding(0.0, None, None)
    part = (1 - CALIBRATION_SHARE) / len(MEASURES)
    # every row a batch, every column a bet; the bets of one test share its capital equally
    tests = [(CALIBRATION_SHARE / 2, _calibration_bets(looks, calibration_size, a * CALIBRATION_SHARE / 2))]
    tests += [(part, _rank_bets(looks, measure)) for measure in range(len(MEASURES))]
    widths = [bets.shape[1] for _, bets in tests]
    names = ["calibration"] * widths[0]
    names += [f"{measure} {way}" for measure in MEASURES for way in ("up", "down") for _ in SHIFTS]
    bets = np.concatenate([bets for _, bets in tests], axis=1)
    # each test has its own part of a: what it has won counts for that part alone, since the sum of test martingales
    # that look at different things need not be one
    scale = np.concatenate([np.full(width, share / width) for (share, _), width in zip(tests, widths, strict=True)])
    starts = np.cumsum([0, *widths[:-1]])
    first = np.zeros(bets.shape[1])
    first[: widths[0]] = FIRST
    fresh, waiting = _weights(np.arange(len(bets), dtype=np.int64), first)
    capital = np.zeros(bets.shape[1])  # what the parts that have begun have grown to
    grown = np.empty_like(bets)
    # after an alarm, which ends the stream, it may grow beyond what a number can hold
    with np.errstate(over="ignore", invalid="ignore"):
        for t, factors in enumerate(bets):
            capital = (capital + fresh[t]) * factors
            grown[t] = capital
        evidence = np.add.reduceat((grown + waiting) * scale, starts, axis=1).max(axis=1)
    alarms = np.flatnonzero(evidence >= 1 / a)
    if not len(alarms):
        return Finding(float(evidence[-1]), None, None)
    alarm = int(alarms[0])
    best = np.zeros(bets.shape[1])  # the largest of these parts, and where it began
    began = np.zeros(bets.shape[1], dtype=np.int64)
    for t in range(alarm + 1):
        began = np.where(best < fresh[t], t, began)
        best = np.maximum(best, fresh[t]) * bets[t]
    most = int(np.argmax(best * scale))
    return Finding(float(evidence[alarm]), alarm, int(began[most]), names[most])


def _weights(t: NDArray[np.int64], first: Floats) -> tuple[Floats, Floats]:
    """The part of each bet's capital that begins to bet with batch t, counted from 0, and what still waits after it.

    `t`: (batches,), `first`: (bets,), and the result twice (batches, bets). `first` with batch 0, half of the rest in
    equal parts with the HORIZON batches after it, and the other half after those, HORIZON / (t (t - 1)) of it with
    batch t: 1 in all, however long the stream is.
    """
    half = (1 - first) / 2
    t = t[:, None]
    later = np.maximum(t, HORIZON)  # HORIZON > 1, so nothing is divided by 0
    fresh = np.where(t <= HORIZON, half / HORIZON, half * HORIZON / (later * (later - 1)))
    waiting = np.where(t <= HORIZON, half * (2 - t / HORIZON), half * HORIZON / later)
    return np.where(t == 0, first, fresh), np.where(t == 0, 1 - first, waiting)


def _ranks(n: int, shares: Sequence[float]) -> list[int]:
    return [min(n, max(1, round(share * n))) for share in shares]


def _calibration_bets(looks: Sequence[Look], n: int, failure: float) -> Floats:
    """The factors of question 1, (batches, bets): for each of HIGH and LOW and each stake, 1 + stake (share / b - 1).

    b bounds the true share beyond the k-th calibration score. All bounds hold with probability 1 - `failure`; when they
    do, each factor is at most 1 on average, whatever came before, because an average of shares has no larger mean
    under dependence.
    """
    ranks = np.array([*_ranks(n, HIGH), *_ranks(n, LOW)])
    # the true share beyond the k-th of n independent scores is Beta(k, n + 1 - k), or less where scores are equal
    bounds = stats.beta.ppf(1 - failure / len(ranks), ranks, n + 1 - ranks)
    shares = np.array([kept.shares for kept in looks])
    factors = 1 + np.array(STAKES) * (shares / bounds - 1)[:, :, None]
    return np.asarray(factors.reshape(len(looks), -1))


def _rank_bets(looks: Sequence[Look], measure: int) -> Floats:
    """The factors of question 2 for one measure, (batches, bets): one for every shift, up and down.

    Were z standard normal, exp(shift z - shift^2 / 2) would be a bet on z being `shift` higher. With rank k of n, z
    lies between the normal quantiles of (k - 1) / n and k / n, and the factor is the mean of the bet there.
    """
    shifts = np.array([*SHIFTS, *(-shift for shift in SHIFTS)])
    earlier: dict[int, list[tuple[float, float]]] = defaultdict(list)
    rank, among = np.zeros(len(looks)), np.ones(len(looks))
    for t, kept in enumerate(looks):
        value = kept.measures[measure]
        if value is None:
            continue
        # batches of 2^j to 2^(j + 1) - 1 images are compared with each other: large ones differ less
        alike = earlier[kept.images.bit_length()]
        place = bisect_left(alike, (value, kept.tie))
        if len(alike) >= LEARN:
            rank[t], among[t] = place, len(alike) + 1
        alike.insert(place, (value, kept.tie))
    # the mean of the bet over the cell is n P(low < N(shift, 1) < high); all of it is 1 where nothing is ranked
    low, high = special.ndtri(rank / among)[:, None], special.ndtri((rank + 1) / among)[:, None]
    return np.asarray(among[:, None] * (special.ndtr(high - shifts) - special.ndtr(low - shifts)))
