"""Split-conformal p-values and what may be promised with them.

Everything here rests on one assumption: a normal image of the future is exchangeable with the calibration images, which
took no part in fitting anything. Nothing is assumed about the score itself; a poor score loses power, never validity.

Frames of one scene are not exchangeable with a frame of another scene: ten alike frames are one piece of evidence and
not ten. Where the images have groups (data.group), the calibration scores are those of one image of each calibration
group, drawn at random (data/groups/draw.py). Then n is the number of groups K. Assume that groups are exchangeable, a
new one included, whatever happens inside of them. Then the K scores and the score of an image drawn from a new group
are exchangeable, and everything below holds for that image exactly as with K independent images. This is the
"subsampling once" of Dunn, Wasserman and Ramdas (2022, "Distribution-free prediction sets for two-layer hierarchical
models"). Lee, Barber and Willett (2023, "Distribution-free inference with hierarchical data") give every image of
group k the weight 1 / ((K + 1) N_k) instead, with the same promise. Their p-value is an average of ranks and no rank
among exchangeable scores, which the bounds for one calibration set, the drift test and Benjamini-Hochberg's proof
(PRDS) need. The smallest p-value, 1 / (K + 1), is the same. Every group counts the same, however many images it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from densitywatch.arrays import Floats
from densitywatch.errors import ModelError

CONFIDENCE = 0.9
"""The probability with which conditional p-values hold for the calibration set at hand."""


def p_values(calibration: ArrayLike, scores: ArrayLike) -> Floats:
    """The share of calibration scores at least as high as each score, the new image counted in: (N,).

    p = (1 + #{calibration >= score}) / (n + 1)

    (Vovk et al. 2005; Bates et al. 2023, "Testing for outliers with conformal p-values"). `calibration` must be sorted
    ascending. A score that is NaN gets the smallest p-value: what cannot be scored is not normal.
    """
    reference = np.asarray(calibration, dtype=np.float64)
    if reference.ndim != 1 or len(reference) == 0:
        raise ValueError("calibration scores: expected a non-empty vector")
    values = np.where(np.isnan(scores), np.inf, np.asarray(scores, dtype=np.float64))
    # searchsorted counts the calibration scores below each value, so the rest are at least as high
    at_least = len(reference) - np.searchsorted(reference, values, side="left")
    return np.asarray((1.0 + at_least) / (len(reference) + 1.0))


def place_p_values(maxima: ArrayLike, maps: ArrayLike) -> Floats:
    """A p-value for every place of maps (B, H, W): the share of calibration images whose *largest* place is as high.

    p(u) = (1 + #{calibration images with max over v of z(v) >= z(u)}) / (n + 1)

    (the max-T construction of Westfall and Young 1993, with ranks among calibration images in place of resampling).
    The smallest p-value of a map is the conformal p-value of its largest place. So, however places depend on each
    other, a normal image has any place with p(u) <= a with probability at most a. `maxima` (n,) must be ascending.
    """
    values = np.asarray(maps, dtype=np.float64)
    return p_values(maxima, values.ravel()).reshape(values.shape)


def images_for(level: float) -> int:
    """The least number of calibration images with which a p-value can be at most `level`: 1 / (n + 1) <= level."""
    return int(np.ceil(1.0 / level - 1.0 - 1e-9))


def check_reachable(level: float, calibration_size: int) -> None:
    """Raises ModelError for a false-alarm rate that so few calibration images cannot show."""
    if calibration_size < images_for(level):
        raise ModelError(
            f"a false-alarm rate of {level:g} takes at least {images_for(level):,} calibration images and there are"
            f" {calibration_size:,}; ask for {1.0 / (calibration_size + 1):.2g} or more, or add images"
        )


def conditional_p_values(p: ArrayLike, calibration_size: int, *, confidence: float = CONFIDENCE) -> Floats:
    """p-values that hold for *this* calibration set with probability `confidence`, not only on average over such sets.

    For a normal image, P(p <= a) <= a holds on average over calibration sets. One unlucky set may be off for as long as
    it is used. Bates et al. (2023, section 3) therefore raise p to an upper confidence bound on P(a normal image scores
    at least as high). Two bounds are taken and the smaller one is used:
    * Dvoretzky-Kiefer-Wolfowitz, the better one near the middle;
    * the exact Beta bound at the order statistics 1, 2, 4, ... with a union bound over them, the better one for small
      p, where decisions are made.
    Each may fail with half of the error probability 1 - `confidence`, so the smaller one is valid at `confidence`.
    Returns values in (0, 1].
    """
    if not 0 < confidence < 1:
        raise ValueError("confidence: expected a number between 0 and 1")
    n, error = calibration_size, (1.0 - confidence) / 2.0
    p = np.asarray(p, dtype=np.float64)
    rank = np.clip(np.rint(p * (n + 1)), 1, n + 1)  # rank k: k - 1 calibration scores are at least as high
    # DKW, one-sided: with probability 1 - error, true tail <= empirical tail + sqrt(log(1 / error) / 2n) everywhere
    band = np.minimum(1.0, (rank - 1) / n + np.sqrt(np.log(1.0 / error) / (2.0 * n)))
    steps, bounds = _tail_bounds(n, error)
    # the bound at the next order statistic covers every rank up to it
    at = np.minimum(np.searchsorted(steps, rank, side="left"), len(steps) - 1)
    exact = np.where(rank <= n, bounds[at], 1.0)
    return np.asarray(np.minimum(band, exact))


@lru_cache(maxsize=8)  # the same for every batch, and slower to compute than all the rest
def _tail_bounds(n: int, error: float) -> tuple[Floats, Floats]:
    """Ranks 1, 2, 4, ... n and an upper bound on the true tail beyond each; all hold with probability 1 - `error`."""
    steps = 2.0 ** np.arange(int(np.ceil(np.log2(n + 1))) + 1)
    steps = np.minimum(steps, n)
    # the true tail beyond the k-th largest of n scores is Beta(k, n + 1 - k); each rank gets an equal part of the error
    return steps, np.asarray(stats.beta.ppf(1.0 - error / len(steps), steps, n + 1 - steps))


def benjamini_hochberg(p: ArrayLike, q: float) -> NDArray[np.bool_]:
    """Which of a batch's p-values are called outliers at a false-discovery rate of q (Benjamini, Hochberg 1995).

    Split-conformal p-values share their calibration set, so they are not independent but positively dependent (PRDS),
    under which the procedure keeps its promise (Bates et al. 2023, theorem 2): the share of normal images among a
    batch's flagged ones, 0 where none is flagged, is at most q on average over batches and calibration sets. Among the
    flagged images of many batches together it may be far higher: a batch without outliers that flags one image counts
    as much as one that flags fifty. The rule for all flags together is in stream.py.
    """
    if not 0 < q < 1:
        raise ValueError("q: expected a false-discovery rate between 0 and 1")
    p = np.asarray(p, dtype=np.float64)
    if len(p) == 0:
        return np.zeros(0, dtype=bool)
    # the largest k with p_(k) <= k q / m: everything up to the k-th smallest p-value is called
    ordered, line = np.sort(p), np.arange(1.0, len(p) + 1)
    line *= q  # in place: a batch may have millions of images
    line /= len(p)
    below = np.flatnonzero(ordered <= line)
    return np.asarray(p <= ordered[below[-1]]) if len(below) else np.zeros(len(p), dtype=bool)


@dataclass(frozen=True)
class Drift:
    """Whether a batch as a whole looks like the calibration images (or like past batches)."""

    statistic: float
    """Kolmogorov-Smirnov distance, 0 to 1."""
    p_value: float
    median_p: float
    """0.5 for a batch like the calibration images; below it, images are more surprising than they should be."""


def drift(p: ArrayLike, past: ArrayLike | None = None, *, calibration_size: int | None = None) -> Drift:
    """Test a batch's p-values against uniform, or against the p-values of past batches where given.

    Kolmogorov-Smirnov, two-sided: a stream that became *less* surprising than calibration has moved as well. A p-value
    is a rank among the calibration images, which are a sample themselves. `calibration_size` takes that into account;
    without it a large normal batch would seem to have moved. An empty batch gives statistic 0 and p 1.
    """
    values = np.asarray(p, dtype=np.float64)
    if len(values) == 0:
        return Drift(statistic=0.0, p_value=1.0, median_p=float("nan"))
    if past is not None and len(np.asarray(past)):
        result = stats.ks_2samp(values, np.asarray(past, dtype=np.float64), method="asymp")
        return Drift(float(result.statistic), float(result.pvalue), float(np.median(values)))
    # lambda x: x is the uniform distribution function; scipy's takes 8 times the memory of the values
    result = stats.kstest(values, lambda x: x)
    p_value = float(result.pvalue)
    if calibration_size is not None:
        # as in ks_2samp's limit: a batch of m against n calibration images is a one-sample test of size m n / (m + n)
        effective = len(values) * calibration_size / (len(values) + calibration_size)
        p_value = float(stats.kstwo.sf(result.statistic, max(1, round(effective))))
    return Drift(float(result.statistic), p_value, float(np.median(values)))
