"""What the p-values promise is tested as a promise: by repeating the experiment many times."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from densitywatch.detector.conformal import benjamini_hochberg, conditional_p_values, drift, p_values


def test_a_p_value_counts_the_calibration_scores_at_least_as_outlying_and_the_image_itself() -> None:
    calibration = np.array([1.0, 2.0, 2.0, 3.0])
    assert p_values(calibration, [0.0, 2.0, 2.5, 3.0, 4.0]).tolist() == [1.0, 0.8, 0.4, 0.4, 0.2]


def test_a_score_that_is_nan_or_infinite_gets_the_smallest_p_value() -> None:
    assert p_values(np.arange(9.0), [np.nan, np.inf]).tolist() == [0.1, 0.1]
    assert p_values(np.arange(9.0), [-np.inf]).tolist() == [1.0]


def test_p_values_need_a_calibration_score() -> None:
    with pytest.raises(ValueError, match="non-empty"):
        p_values(np.empty(0), [1.0])


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_normal_images_raise_false_alarms_at_the_promised_rate_over_calibration_sets(alpha: float) -> None:
    rng = np.random.default_rng(0)
    rates = [(p_values(np.sort(rng.normal(size=199)), rng.normal(size=100)) <= alpha).mean() for _ in range(500)]
    assert np.mean(rates) <= alpha + 3 * np.std(rates) / np.sqrt(500)
    assert np.mean(rates) >= alpha - 0.005 - 3 * np.std(rates) / np.sqrt(500)


def test_conditional_p_values_hold_for_nearly_every_single_calibration_set() -> None:
    rng = np.random.default_rng(1)
    broken_plain = broken_conditional = 0
    for _ in range(400):
        calibration = np.sort(rng.uniform(size=300))
        scores = np.concatenate([calibration, calibration + 1e-9, np.linspace(0, 1, 200)])
        truth = 1.0 - np.clip(scores, 0, 1)  # of a uniform score, P(a normal image is at least as outlying)
        plain = p_values(calibration, scores)
        broken_plain += bool((plain < truth - 1e-12).any())
        broken_conditional += bool((conditional_p_values(plain, 300, confidence=0.9) < truth - 1e-12).any())
    assert broken_plain > 300
    assert broken_conditional <= 40 + 3 * np.sqrt(400 * 0.1 * 0.9)


def test_conditional_p_values_keep_the_order_and_are_no_smaller_than_plain_ones() -> None:
    plain = np.arange(1, 1002) / 1001
    raised = conditional_p_values(plain, 1000)
    assert (np.diff(raised) >= 0).all()
    assert (raised >= np.minimum(plain, 1.0) - 1 / 1001).all()
    assert raised[-1] == 1.0
    assert raised[0] < 0.01  # the smallest stays small enough to act on


def test_benjamini_hochberg_agrees_with_scipy_on_random_batches() -> None:
    rng = np.random.default_rng(2)
    for size in (1, 2, 7, 100):
        p = np.concatenate([rng.uniform(size=size), rng.uniform(size=size) ** 6])
        assert (benjamini_hochberg(p, 0.1) == (stats.false_discovery_control(p, method="bh") <= 0.1)).all()


def test_benjamini_hochberg_of_an_empty_batch_flags_nothing() -> None:
    assert benjamini_hochberg([], 0.1).shape == (0,)
    with pytest.raises(ValueError, match="false-discovery rate"):
        benjamini_hochberg([0.5], 1.0)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1])
def test_the_realised_false_discovery_rate_stays_below_its_target_over_many_batches(share: float) -> None:
    rng = np.random.default_rng(3)
    realised, found = [], []
    for _ in range(300):
        calibration = np.sort(rng.normal(size=2000))
        outlier = rng.uniform(size=300) < share
        flagged = benjamini_hochberg(p_values(calibration, rng.normal(size=300) + 4.0 * outlier), 0.1)
        realised.append((flagged & ~outlier).sum() / max(1, flagged.sum()))
        found.append((flagged & outlier).sum() / max(1, outlier.sum()))
    assert np.mean(realised) <= 0.1 + 2 * np.std(realised) / np.sqrt(300)
    assert np.mean(found) > 0.3


def test_drift_is_silent_on_normal_batches_and_loud_when_the_stream_moves_either_way() -> None:
    rng = np.random.default_rng(4)
    calibration = np.sort(rng.normal(size=1000))
    quiet = [drift(p_values(calibration, rng.normal(size=200)), calibration_size=1000).p_value for _ in range(200)]
    assert np.mean(np.array(quiet) < 0.05) < 0.1
    for shift in (-0.5, 0.5):
        moved = p_values(calibration, rng.normal(size=400) + shift)
        assert drift(moved).p_value < 1e-6
        assert drift(moved, past=rng.uniform(size=500)).p_value < 1e-6
        assert (drift(moved).median_p < 0.5) == (shift > 0)


@pytest.mark.slow
def test_a_normal_batch_larger_than_the_calibration_set_has_not_moved() -> None:
    rng = np.random.default_rng(5)
    calibrations = np.sort(rng.normal(size=(200, 500)), axis=1)
    batches = [p_values(calibration, rng.normal(size=20_000)) for calibration in calibrations]
    quiet = np.array([drift(batch, calibration_size=500).p_value for batch in batches])
    assert np.mean(quiet < 0.05) < 0.1
    assert np.mean(np.array([drift(batch).p_value for batch in batches]) < 0.05) > 0.8, (
        "the calibration set is a sample"
    )
    grid = np.arange(1, 501) / 501
    assert quiet[0] == pytest.approx(stats.ks_2samp(batches[0], grid, method="asymp").pvalue, abs=0.03)


def test_drift_of_an_empty_batch_says_nothing() -> None:
    assert drift([]).p_value == 1.0
    assert drift([], past=[0.5]).statistic == 0.0
