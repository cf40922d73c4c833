"""What is promised of groups, by simulation; and the range in which a realised rate lies."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from densitywatch.data.groups.draw import one_of_each_group
from densitywatch.detector.conformal import p_values
from densitywatch.detector.realised_alarms import LEVELS, expected_range, realised_alarms

GROUPS, FRAMES, TRIALS = 99, 12, 4000


@pytest.mark.parametrize("alike", [0.0, 0.9, 1.0])
def test_an_image_of_a_new_group_keeps_the_rate_however_alike_the_images_of_a_group_are(alike: float) -> None:
    # groups of 1 to FRAMES images; a score is sqrt(alike) * (the group's) + sqrt(1 - alike) * (its own)
    rng = np.random.default_rng(1)
    counts = np.zeros(len(LEVELS))
    for trial in range(TRIALS):
        groups = np.repeat(np.arange(GROUPS), rng.integers(1, FRAMES + 1, GROUPS))
        scores = np.sqrt(alike) * rng.normal(size=GROUPS)[groups] + np.sqrt(1 - alike) * rng.normal(size=len(groups))
        calibration = np.sort(scores[one_of_each_group(groups, trial)])
        p = p_values(calibration, [rng.normal()])
        counts += p[0] <= np.array(LEVELS)
    for level, count in zip(LEVELS, counts, strict=True):
        # with 99 groups and no ties the chance is exactly the level
        low, high = stats.binom.ppf([0.0005, 0.9995], TRIALS, level)
        assert low <= count <= high


def test_counting_every_image_of_a_group_breaks_the_rate_inside_one_calibration_set() -> None:
    # the variance of the realised rate is that of GROUPS images and not of all of them
    rng = np.random.default_rng(2)
    realised = []
    for _ in range(500):
        calibration = np.sort(np.repeat(rng.normal(size=GROUPS), FRAMES))
        realised.append((p_values(calibration, rng.normal(size=200)) <= 0.05).mean())
    low, high = expected_range(0.05, GROUPS * FRAMES, 200)
    inside = np.mean([low <= share <= high for share in realised])
    assert inside < 0.9
    low, high = expected_range(0.05, GROUPS, 200)
    assert np.mean([low <= share <= high for share in realised]) > 0.93


def test_the_range_holds_95_percent_of_realised_rates_when_the_promise_holds() -> None:
    rng = np.random.default_rng(3)
    inside = np.zeros(len(LEVELS))
    for trial in range(600):
        new = np.repeat(np.arange(150), rng.integers(1, 6, 150))
        p = p_values(np.sort(rng.normal(size=300)), rng.normal(size=150)[new])
        inside += [found.holds for found in realised_alarms(p, new, 300, seed=trial)]
    assert (inside / 600 > 0.93).all()
    assert (inside / 600 < 0.985).all(), "the range is no wider than it says"


def test_every_group_counts_the_same_in_the_share_of_all_images() -> None:
    found = realised_alarms([0.001, 0.5, 0.5, 0.5, 0.03], [0, 1, 1, 1, 2], 999, seed=0)
    assert [(each.share, each.every_image) for each in found] == [
        pytest.approx((1 / 3, 1 / 3)), pytest.approx((2 / 3, 2 / 3)), pytest.approx((2 / 3, 2 / 3)),
    ]  # fmt: skip
    assert (found[0].groups, found[0].images) == (3, 5)
    assert realised_alarms([0.001, 0.5], None, 99, seed=0)[0].share == 0.5


def test_a_rate_that_no_p_value_reaches_has_an_empty_range() -> None:
    assert expected_range(0.01, 98, 1000) == (0.0, 0.0)
    low, high = expected_range(0.01, 99, 1000)
    assert low < 0.01 < high
