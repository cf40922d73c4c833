"""The promise of the gate, by simulation with fixed seeds: who is promoted how often."""

from __future__ import annotations

import pytest

from benchmarks.registry.gate_rates import PAIRS, promoted
from densitywatch.params import Params

RUNS, DRAWS = 200, 100
SMALL = {"bits": 600, "detector": 400, "samples": 200}
"""Images of a simulated gate, few enough for the test to be fast."""


def rate(kind: str, worse: float, params: Params) -> tuple[float, tuple[float, float], float]:
    found = promoted(kind, worse, params.gate, images=SMALL[kind], runs=RUNS, draws=DRAWS)
    return found.share, found.interval(0.999), found.expected


@pytest.mark.parametrize("kind", PAIRS)
def test_a_candidate_worse_by_the_margin_is_promoted_in_5_of_100_and_one_worse_by_twice_that_less(
    kind: str, params: Params
) -> None:
    _, (low, high), expected = rate(kind, 1.0, params)
    assert low <= 0.05 <= high
    assert expected == pytest.approx(0.05, abs=0.03)
    share, _, _ = rate(kind, 2.0, params)
    assert share <= 0.05


@pytest.mark.parametrize("kind", PAIRS)
def test_an_equal_candidate_is_promoted_as_often_as_the_margin_implies(kind: str, params: Params) -> None:
    share, (low, high), expected = rate(kind, 0.0, params)
    assert low <= expected <= high
    assert 0.05 < share < 1.0 or expected > 0.98


@pytest.mark.parametrize("kind", PAIRS)
def test_a_better_candidate_is_promoted_more_often_than_an_equal_one(kind: str, params: Params) -> None:
    assert rate(kind, -1.0, params)[0] > rate(kind, 0.0, params)[0]
