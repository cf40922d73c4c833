"""What the deployed rule finds, against exact values and against the rate that it promises."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from densitywatch.detector.power import STREAM, power
from densitywatch.params import Control


def test_outliers_of_two_kinds_are_found_as_often_as_the_binomial_says() -> None:
    """A share a of the outliers scores above all calibration images, the rest and all normal images below all of them.

    K of the m outliers of a batch are at p = 1/(n + 1). They are flagged exactly where 1/(n + 1) <= K rate / batch.
    """
    n, batch, share, rate, a = 999, 500, 0.02, 0.1, 0.4
    calibration = np.arange(1.0, n + 1)
    outlying = np.where(np.arange(1000) < 1000 * a, 2000.0, 0.0)
    m = round(share * batch)
    needed = int(np.ceil(batch / rate / (n + 1)))
    assert 1 < needed < m, "neither always nor never"
    k = np.arange(m + 1)
    exact = float((stats.binom.pmf(k, m, a) * np.where(k >= needed, k, 0)).sum() / m)
    found = power(calibration, np.zeros(1000), outlying, rate=rate, share=share, batch=batch, batches=4000)
    assert 0.05 < exact < a - 0.02
    assert abs(found.found - exact) < 4 * 0.5 / np.sqrt(4000 * m) + 0.005
    assert found.false_alarms == found.false_discovery_rate == 0


def test_the_mean_of_the_batches_proportions_is_the_rate_on_average_over_calibration_sets() -> None:
    rng = np.random.default_rng(0)
    rates = []
    for seed in range(200):
        scores = rng.normal(size=5000)
        found = power(
            np.sort(scores[:1000]), scores[1000:], np.full(20, 9.0), rate=0.2, share=0.05, batches=20, seed=seed
        )
        assert found.found == 1.0
        rates.append(found.false_discovery_rate)
    # Benjamini-Hochberg realises rate * (share of normal images), but for p-values that are whole steps of 1/1001
    error = np.std(rates) / np.sqrt(len(rates))
    assert abs(np.mean(rates) - 0.2 * 0.95) < 3 * error + 0.002
    assert error < 0.01


def test_pooled_false_alarms_weigh_images_and_the_mean_of_proportions_weighs_batches() -> None:
    """With few outliers most flags of rare batches are false, which the mean of proportions does not show."""
    rng = np.random.default_rng(1)
    found = power(
        np.sort(rng.normal(size=2000)), rng.normal(size=4000), np.full(5, 9.0), rate=0.1, share=0.01, batches=500
    )
    assert found.false_alarms > found.false_discovery_rate > 0


def test_nothing_flagged_is_no_false_alarm_and_one_outlier_is_the_least() -> None:
    calibration = np.arange(1.0, 100.0)
    nothing = power(calibration, np.zeros(10), np.zeros(10), rate=0.1, share=0.01, batch=20, batches=10)
    assert (nothing.found, nothing.false_alarms, nothing.false_discovery_rate) == (0.0, 0.0, 0.0)


def test_the_same_seed_draws_the_same_batches() -> None:
    rng = np.random.default_rng(2)
    calibration, normal, outlying = np.sort(rng.normal(size=500)), rng.normal(size=300), rng.normal(size=90) + 3
    one, again, other = (
        power(calibration, normal, outlying, rate=0.1, share=0.05, batches=50, seed=seed) for seed in (1, 1, 2)
    )
    assert one == again != other


def test_over_a_stream_the_pooled_share_of_false_alarms_is_kept_on_average_over_calibration_sets() -> None:
    """Perfect outliers, 1 % of each batch: each batch by itself exceeds what the stream's rule keeps."""
    rng = np.random.default_rng(0)
    wrong: dict[Control, Any] = {"stream": np.zeros(2), "batch": np.zeros(2)}
    for seed in range(40):
        scores = rng.normal(size=6000)
        for control, total in wrong.items():
            found = power(
                np.sort(scores[:2000]),
                scores[2000:],
                np.full(20, 9.0),
                rate=0.1,
                share=0.01,
                control=control,
                batches=STREAM,
                seed=seed,
            )
            flagged = found.found * 5 * STREAM / (1 - found.false_alarms) if found.found else 0.0
            total += found.false_alarms * flagged, flagged
    # the promise is of expected numbers: false alarms over flags, both summed over streams
    assert wrong["stream"][0] / wrong["stream"][1] <= 0.1
    assert wrong["stream"][1] > 0
    assert wrong["batch"][0] / wrong["batch"][1] > wrong["stream"][0] / wrong["stream"][1]
