"""An image's rank among normal images with its label: the promised rate, and labels with too few images for it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from densitywatch.arrays import Floats
from densitywatch.detector.conformal import images_for
from densitywatch.detector.label_ranks import LabelRanks

SHARES = np.array([0.6, 0.3, 0.1])


def draw(count: int, rng: np.random.Generator) -> tuple[Floats, NDArray[np.int64]]:
    """Scores and given labels of normal images. A fifth gets a wrong label, and those score higher."""
    true = rng.choice(3, count, p=SHARES)
    wrong = rng.random(count) < 0.2
    given = np.where(wrong, (true + rng.integers(1, 3, count)) % 3, true)
    return rng.gamma(2.0 + true, 1.0, count) + 4.0 * wrong, given


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_normal_images_of_every_given_label_have_a_p_value_up_to_the_rate_as_often_as_promised(rate: float) -> None:
    rng = np.random.default_rng(1)
    below, seen, expected = np.zeros(3), np.zeros(3), np.zeros(3)
    for _ in range(3000):  # a calibration set each, since the promise is one on average over them
        scores, labels = draw(1200, rng)
        ranks = LabelRanks(scores, labels, 3)
        new, given = draw(20, rng)
        p = ranks.p_values(new, given)
        for label in range(3):
            here, own = given == label, int((labels == label).sum())
            seen[label] += here.sum()
            below[label] += (p[here] <= rate).sum()
            # exactly: a rank among own + 1 exchangeable images is uniform
            expected[label] += here.sum() * np.floor(rate * (own + 1)) / (own + 1)
    for label in range(3):
        low, high = stats.binom.interval(0.9999, int(seen[label]), expected[label] / seen[label])
        # images of one calibration set are not independent, so the interval is half as wide again
        middle = expected[label]
        assert abs(below[label] - middle) <= 1.5 * max(high - middle, middle - low)
        assert expected[label] <= rate * seen[label]


def test_ranks_by_the_true_label_would_not_keep_the_rate() -> None:
    """Why given labels are taken: the simulation above tells the two apart."""
    rng = np.random.default_rng(2)
    true = rng.choice(3, 60_000, p=SHARES)
    wrong = (true == 0) & (rng.random(len(true)) < 0.2)
    given = np.where(wrong, 1, true)
    scores = rng.gamma(2.0 + true, 1.0) + 4.0 * wrong
    new, known = slice(0, 30_000), slice(30_000, None)
    by_true = LabelRanks(scores[known], true[known], 3).p_values(scores[new], given[new]) <= 0.05
    by_given = LabelRanks(scores[known], given[known], 3).p_values(scores[new], given[new]) <= 0.05
    assert by_true[given[new] == 1].mean() > 0.1
    assert max(by_given[given[new] == label].mean() for label in range(3)) < 0.06


def test_a_p_value_is_the_rank_among_images_of_the_same_label() -> None:
    ranks = LabelRanks(np.array([1.0, 2.0, 3.0, 10.0]), np.array([0, 0, 0, 1]), 3)
    p = ranks.p_values(np.array([2.5, 0.0, 4.0, 9.0, 11.0, 99.0, np.nan]), np.array([0, 0, 0, 1, 1, 2, 0]))
    assert p == pytest.approx([2 / 4, 1.0, 1 / 4, 1.0, 1 / 2, 1.0, 1 / 4])


@pytest.mark.parametrize(("rate", "least"), [(0.01, 99), (0.05, 19), (0.5, 1), (0.003, 333)])
def test_the_least_number_of_images_is_the_first_that_reaches_the_rate(rate: float, least: int) -> None:
    assert images_for(rate) == least

    def smallest(count: int) -> float:
        ranks = LabelRanks(np.arange(float(count)), np.zeros(count, int), 1)
        return float(ranks.p_values(np.array([1e9]), np.array([0]))[0])

    assert smallest(least) <= rate
    assert least == 1 or smallest(least - 1) > rate


def test_labels_with_too_few_images_are_named_with_their_number_and_what_it_takes() -> None:
    labels = np.repeat([0, 1, 2], [99, 98, 300])
    ranks = LabelRanks(np.arange(float(len(labels))), labels, 4)
    words = ranks.too_small(0.01, ["shirt", "bag", "boot", "dress"])
    assert words is not None
    assert "at a rate of 1 in 100: bag (98), dress (0)." in words
    assert "it takes 99" in words
    assert "shirt" not in words
    assert LabelRanks(np.arange(99.0), np.zeros(99, int), 1).too_small(0.01, ["shirt"]) is None
