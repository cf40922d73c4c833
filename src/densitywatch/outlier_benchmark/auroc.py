"""How well a score separates two sets of images, with bootstrap intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from densitywatch.arrays import Floats

MEASURES = ("auroc", "aupr", "fpr_at_95_tpr", "tpr_at_1_fpr")


def separation(normal: Floats, outlier: Floats, *, resamples: int = 0, seed: int = 0) -> dict[str, list[float]]:
    """AUROC, AUPR (outliers positive), FPR at 95 % TPR and TPR at 1 % FPR, each as [value, low, high].

    low and high bound the middle 95 % of `resamples` bootstrap resamples of both sets; with 0 they equal the value.
    Ties count half in AUROC; a threshold takes all of its ties along. A score that is NaN counts as the most outlying.
    """
    scores = np.concatenate([normal, outlier]).astype(np.float64)
    scores[np.isnan(scores)] = np.inf
    # every distinct score is a threshold, from the highest down; group says which one each image has
    distinct, group = np.unique(-scores, return_inverse=True)
    n, m = len(normal), len(outlier)
    rng = np.random.default_rng(seed)
    # bootstrap: row 0 is the sample itself, the others say how often each image was drawn with replacement
    weights_n = np.vstack([np.ones(n), rng.multinomial(n, np.full(n, 1 / n), resamples)])
    weights_m = np.vstack([np.ones(m), rng.multinomial(m, np.full(m, 1 / m), resamples)])
    false = _by_threshold(weights_n, group[:n], len(distinct)) / n
    true = _by_threshold(weights_m, group[n:], len(distinct)) / m
    # one ROC curve a row: false and true positive rates at falling thresholds
    values = {
        # the area under the curve by trapezoids, which counts ties half
        "auroc": np.sum(np.diff(false, axis=1) * (true[:, 1:] + true[:, :-1]) / 2.0, axis=1),
        "aupr": _average_precision(false * n, true * m),
        # the lowest false positive rate of a threshold that finds 95 % of the outliers, and the converse
        "fpr_at_95_tpr": np.where(true >= 0.95 - 1e-12, false, 1.0).min(1),
        "tpr_at_1_fpr": np.where(false <= 0.01 + 1e-12, true, 0.0).max(1),
    }
    result = {}
    for name in MEASURES:
        value = values[name]
        low, high = np.quantile(value[1:], [0.025, 0.975]) if resamples else (value[0], value[0])
        result[name] = [float(value[0]), float(low), float(high)]
    return result


def auroc(normal: Floats, outlier: Floats) -> float:
    """The probability that an outlier scores higher than a normal image; a tie counts half."""
    return separation(normal, outlier)["auroc"][0]


def _by_threshold(weights: Floats, group: NDArray[np.int64], groups: int) -> Floats:
    """Summed weight of the images at or above each distinct score, from none to all: (R, groups + 1)."""
    order = np.argsort(group, kind="stable")
    upto = np.searchsorted(group[order], np.arange(groups), side="right")
    cumulated = np.cumsum(weights[:, order], axis=1, dtype=np.float64)
    return np.concatenate([np.zeros((len(weights), 1)), cumulated], 1)[:, np.concatenate([[0], upto])]


def _average_precision(false: Floats, true: Floats) -> Floats:
    """Sum over thresholds of (rise in recall) * precision, for counts (R, T) of false and true positives."""
    called = false[:, 1:] + true[:, 1:]
    precision = np.divide(true[:, 1:], called, out=np.zeros_like(called), where=called > 0)
    return np.asarray(np.sum(np.diff(true, axis=1) * precision, axis=1) / true[:, -1])
