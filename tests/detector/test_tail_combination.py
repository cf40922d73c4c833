"""Surprises of members and how often they count the same evidence."""

from __future__ import annotations

import math

import numpy as np

from densitywatch.detector.tail_combination import combined, fit_tail, tail_surprise, variance_ratio


def test_tail_surprise_rises_with_the_score_counts_inside_and_goes_on_beyond_all_that_was_seen() -> None:
    rng = np.random.default_rng(2)
    seen = rng.normal(size=2000)
    fitted = fit_tail(seen)
    ladder = tail_surprise(np.linspace(-4, 40, 300), fitted)
    assert (np.diff(ladder) >= 0).all()
    assert ladder[-1] > ladder[-100] > -math.log(1 / 2000)
    assert np.isclose(tail_surprise(np.quantile(seen, [0.5]), fitted)[0], math.log(2), atol=0.02)
    assert np.isfinite(tail_surprise(np.array([0.0]), fit_tail(np.zeros(5)))).all()


def test_overlap_is_how_many_copies_of_the_same_surprise_were_added() -> None:
    surprise = np.random.default_rng(0).exponential(size=(20000, 3))
    assert np.isclose(variance_ratio(surprise.sum(1)), 1.0, atol=0.05)
    assert np.isclose(variance_ratio(3 * surprise[:, 0]), 3.0, atol=0.15)
    assert variance_ratio(np.zeros(4)) == 1.0


def test_the_largest_surprise_counts_twice() -> None:
    np.testing.assert_allclose(combined([np.array([1.0, 5.0]), np.array([2.0, 0.0])]), [5.0, 10.0])
    # two members that see nothing cannot outvote one that is sure: here the plain sum of three agreeing members wins
    sure, doubtful = np.array([6.0, 2.5]), np.array([0.0, 2.5])
    score = combined([sure, doubtful, doubtful])
    assert score[0] > score[1]
    assert (sure + 2 * doubtful)[0] < (sure + 2 * doubtful)[1]
