"""The realised false-discovery rate against the promised one."""

from __future__ import annotations

import numpy as np

from densitywatch.outlier_benchmark.realised_fdr import realised_rates


def test_the_realised_rate_is_that_of_the_promise_and_conditional_p_values_stay_below_it() -> None:
    rng = np.random.default_rng(0)
    rates = realised_rates(rng.normal(size=3000), rng.normal(size=200) + 6, calibration_size=2000, target=0.1, seed=0)
    for share, rate in rates.items():
        assert 0.07 < rate["false_discovery_rate"] < (1 - share) * 0.1 + 0.01  # no more than the normal share of 0.1
        assert rate["power"] > 0.9
        assert rate["conditional_false_discovery_rate"] <= rate["false_discovery_rate"]
