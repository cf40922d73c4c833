"""The realised false-discovery rate against the promised one."""

from __future__ import annotations

import numpy as np

from densitywatch.outlier_benchmark.realised_fdr import rates_in_streams, realised_rates


def test_the_realised_rate_is_that_of_the_promise_and_conditional_p_values_stay_below_it() -> None:
    rng = np.random.default_rng(0)
    rates = realised_rates(rng.normal(size=3000), rng.normal(size=200) + 6, calibration_size=2000, target=0.1, seed=0)
    for share, rate in rates.items():
        assert 0.07 < rate["false_discovery_rate"] < (1 - share) * 0.1 + 0.01  # no more than the normal share of 0.1
        assert rate["power"] > 0.9
        assert rate["conditional_false_discovery_rate"] <= rate["false_discovery_rate"]


def test_where_outliers_are_rare_the_batch_rule_pools_mostly_false_flags_and_the_stream_keeps_its_share() -> None:
    rng = np.random.default_rng(1)
    rates = rates_in_streams(rng.normal(size=9000), rng.normal(size=200) + 9, calibration_size=3000, target=0.1, seed=0)
    assert rates["pooled_false_share"] > 0.5
    assert rates["power"] == 1.0
    assert rates["stream_pooled_false_share"] <= 0.1
    assert rates["stream_power"] > 0.3
    blind = rates_in_streams(rng.normal(size=9000), rng.normal(size=200), calibration_size=3000, target=0.1, seed=0)
    assert blind["stream_pooled_false_share"] <= 0.1
