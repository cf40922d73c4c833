"""Shares with their intervals, levels that are out of reach, and floors."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from densitywatch.batches.assess import measures
from densitywatch.detector.conformal import p_values


def test_a_share_has_the_exact_binomial_interval() -> None:
    found = measures.share_at(np.array([0.01, 0.05, 0.2, 0.9]), 0.05, 99)
    assert (found["count"], found["images"], found["share"]) == (2, 4, 0.5)
    # Clopper and Pearson: each end leaves 2.5 % beyond what was seen
    assert stats.binom.sf(1, 4, found["low"]) == pytest.approx(0.025, abs=1e-6)
    assert stats.binom.cdf(2, 4, found["high"]) == pytest.approx(0.025, abs=1e-6)


def test_a_level_that_so_few_calibration_images_cannot_reach_is_said_in_words() -> None:
    found = measures.share_at(np.full(10, 0.05), 0.01, 19)
    assert found["share"] is None
    assert found["words"] == "out of reach: 19 calibration images give no p-value below 0.05; 1% takes 99"
    assert measures.share_at(np.full(10, 0.05), 0.05, 19)["share"] == 1.0


def test_the_expected_range_holds_95_of_100_normal_folders_and_names_one_that_is_above() -> None:
    rng = np.random.default_rng(0)
    above = []
    for _ in range(2000):
        calibration, good = np.sort(rng.normal(size=99)), rng.normal(size=50)
        above.append(measures.false_alarms(p_values(calibration, good), 0.05, 99)["above"])
    # at most 2.5 % lie above, up to the chance of 2,000 folders
    assert np.mean(above) <= 0.025 + 3 * np.sqrt(0.025 * 0.975 / 2000)
    assert measures.false_alarms(np.full(50, 0.01), 0.05, 99)["above"]


def test_floors_take_the_better_direction_and_say_which() -> None:
    rng = np.random.default_rng(0)
    good = rng.integers(100, 140, (30, 1, 16, 16), dtype=np.uint8)
    dark = np.full((20, 1, 16, 16), 50, np.uint8)
    found = measures.floors(measures.floor_values(good), measures.floor_values(dark), 0)
    assert [floor["name"] for floor in found] == ["mean intensity (darker)", "WebP length (shorter)"]
    np.testing.assert_allclose([floor["auroc"] for floor in found], np.ones((2, 3)))
    bright = measures.floors(measures.floor_values(dark), measures.floor_values(good), 0)
    assert [floor["name"] for floor in bright] == ["mean intensity (brighter)", "WebP length (longer)"]


def test_a_detector_that_a_floor_beats_is_named_with_that_floor() -> None:
    rng = np.random.default_rng(1)
    good = {"score": rng.normal(size=40), "p_value": rng.uniform(size=40), "floors": rng.normal(size=(40, 2))}
    bad = {key: values.copy() for key, values in good.items()}
    bad["floors"][:, 0] += 10
    found = measures.figures(good, bad, 99, 0)
    assert found["auroc"][0] == pytest.approx(0.5)
    assert found["below_floor"] == ["mean intensity (brighter)"]
    bad["score"] += 20
    assert measures.figures(good, bad, 99, 0)["below_floor"] == []


def test_the_interval_of_an_auroc_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    truth = stats.norm.cdf(1 / np.sqrt(2))
    inside = []
    for seed in range(300):
        _, low, high = measures.image_auroc(rng.normal(size=60), rng.normal(1, size=60), seed)
        inside.append(low <= truth <= high)
    # 95 % up to the chance of 300 tries and the bootstrap's own bias at 60 images
    assert 0.90 <= np.mean(inside) <= 0.99
