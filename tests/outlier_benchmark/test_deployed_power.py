"""The table of what the deployed rule finds: order, interval, keys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from densitywatch.detector.power import Power, power
from densitywatch.outlier_benchmark import deployed_power
from densitywatch.outlier_benchmark.deployed_power import SHARES, Found, power_by_kind, power_figures
from densitywatch.outlier_benchmark.tables import nothing_found
from densitywatch.params import Params, load_params

ROOT = Path(__file__).parents[2]


def in_force(seed: int, rate: float = 0.1, **inbox: object) -> Params:
    """The default params with another seed and other values in the inbox's block; each batch is judged by itself."""
    params = load_params(ROOT / "params.yaml")
    return params.model_copy(
        update={
            "seed": seed,
            "detector": params.detector.model_copy(update={"false_discovery_rate": rate}),
            "inbox": params.inbox.model_copy(update={"control": "batch", **inbox}),
        }
    )


def test_the_worst_kind_comes_first_and_the_interval_holds_the_figure() -> None:
    rng = np.random.default_rng(0)
    calibration, normal = np.sort(rng.normal(size=2000)), rng.normal(size=600)
    kinds = {"easy": rng.normal(size=300) + 6, "hard": rng.normal(size=300) + 2, "between": rng.normal(size=300) + 3.5}
    found = power_by_kind(calibration, normal, kinds, in_force(3))
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
    for seed in range(10):
        kinds = {"kind": rng.normal(size=200) + 3}
        one = power_by_kind(calibration, rng.normal(size=400), kinds, in_force(seed))["kind"]
        held += one.low <= many.found <= one.high
    assert held >= 7  # at 95 % fewer than 7 of 10 come once in 1,000 times; at 50 % five times in six


def test_the_keys_name_the_percent_of_outliers_and_the_worst() -> None:
    rng = np.random.default_rng(0)
    found = power_by_kind(
        np.sort(rng.normal(size=300)), rng.normal(size=100), {"a": np.full(5, 9.0), "b": np.zeros(5)}, in_force(0)
    )
    figures = power_figures(found)
    assert list(figures) == ["power_at_5", "false_alarms_at_5", "power_at_1", "false_alarms_at_1"]
    assert figures["power_at_5"]["b"] == figures["power_at_5"]["min"] == 0.0
    assert figures["false_alarms_at_1"]["max"] == max(figures["false_alarms_at_1"][kind] for kind in "ab")


def test_the_rule_is_the_one_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """`inbox.control`, `inbox.strict` and `inbox.alike` each change what is found, as they do in the scheduled job."""
    monkeypatch.setattr(deployed_power, "RESAMPLES", 2)
    rng = np.random.default_rng(0)
    calibration, normal, kinds = np.sort(rng.normal(size=2000)), rng.normal(size=600), {"a": rng.normal(size=300) + 3.5}
    found = {
        name: power_by_kind(calibration, normal, kinds, in_force(0, **inbox))["a"].by_share[0.05].found
        for name, inbox in {
            "batch": {"control": "batch"},
            "strict": {"control": "batch", "strict": True},
            "stream": {"control": "stream"},
            "scenes": {"control": "stream", "alike": 10},
        }.items()
    }
    assert found["batch"] > found["strict"]
    assert found["batch"] > found["stream"] > found["scenes"]
    rate = power_by_kind(calibration, normal, kinds, in_force(0, rate=0.3))["a"].by_share[0.05].found
    assert rate > found["batch"]


def test_a_table_of_zeros_says_why_and_another_one_does_not() -> None:
    nothing = {"a": Found({0.05: Power(0.0, 0.0, 0.0), 0.01: Power(0.0, 0.0, 0.0)}, 0.0, 0.0)}
    assert "With 99 calibration images no p-value is below 0.01" in nothing_found(nothing, 99)
    something = nothing | {"b": Found({0.05: Power(0.2, 0.0, 0.0), 0.01: Power(0.0, 0.0, 0.0)}, 0.1, 0.3)}
    assert nothing_found(something, 99) == ""
