"""The table of what the deployed rule finds: order, interval, keys."""

from __future__ import annotations

import numpy as np

from densitywatch.detector.power import power
from densitywatch.outlier_benchmark.deployed_power import SHARES, power_by_kind, power_figures


def test_the_worst_kind_comes_first_and_the_interval_holds_the_figure() -> None:
    rng = np.random.default_rng(0)
    calibration, normal = np.sort(rng.normal(size=2000)), rng.normal(size=600)
    kinds = {"easy": rng.normal(size=300) + 6, "hard": rng.normal(size=300) + 2, "between": rng.normal(size=300) + 3.5}
    found = power_by_kind(calibration, normal, kinds, rate=0.1, seed=3)
    assert list(found) == ["hard", "between", "easy"]
    for kind, one in found.items():
        for share in SHARES:
            assert one.by_share[share] == power(calibration, normal, kinds[kind], rate=0.1, share=share, seed=3)
        assert one.low <= one.by_share[0.05].found <= one.high
    assert 0.02 < found["between"].high - found["between"].low < 0.4


def test_the_interval_is_as_wide_as_figures_of_new_images_differ() -> None:
    """95 % of intervals should hold the figure of all images."""
    rng = np.random.default_rng(1)
    calibration = np.sort(rng.normal(size=2000))
    many = power(calibration, rng.normal(size=20000), rng.normal(size=20000) + 3, rate=0.1, share=0.05, batches=4000)
    held = 0
    for seed in range(16):
        kinds = {"kind": rng.normal(size=200) + 3}
        one = power_by_kind(calibration, rng.normal(size=400), kinds, rate=0.1, seed=seed)["kind"]
        held += one.low <= many.found <= one.high
    assert held >= 12  # at 95 % fewer than 12 of 16 come once in 1,000 times; at 50 % fewer come in nine of ten


def test_the_keys_name_the_percent_of_outliers_and_the_worst() -> None:
    rng = np.random.default_rng(0)
    found = power_by_kind(
        np.sort(rng.normal(size=300)), rng.normal(size=100), {"a": np.full(5, 9.0), "b": np.zeros(5)}, rate=0.1, seed=0
    )
    figures = power_figures(found)
    assert list(figures) == ["power_at_5", "false_alarms_at_5", "power_at_1", "false_alarms_at_1"]
    assert figures["power_at_5"]["b"] == figures["power_at_5"]["min"] == 0.0
    assert figures["false_alarms_at_1"]["max"] == max(figures["false_alarms_at_1"][kind] for kind in "ab")
