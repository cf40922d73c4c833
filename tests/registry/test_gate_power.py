"""The gate looks at what a detector finds by the rule in force, by simulation with fixed seeds."""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
import pytest

from benchmarks.registry.gate_rates import promoted_by_power
from densitywatch.arrays import Floats
from densitywatch.detector.power import BATCHES, STREAM, power
from densitywatch.params import Params
from densitywatch.registry.gate import Decision, judge
from densitywatch.registry.measuring_detectors import SHARE, STREAMS, missed_by_rule
from densitywatch.registry.resampling import Measurement, bootstrap_counts, one_figure, wrong_pairs

IMAGES = 500
COUNTS = bootstrap_counts(np.arange(IMAGES), 0)
CALIBRATION = np.linspace(0.0, 1.0, 3000)
NORMAL = np.random.default_rng(0).random(IMAGES)


def measured(outlying: Floats, params: Params, calibration: Floats = CALIBRATION) -> Measurement:
    """A detector whose scores are ranks among normal images, 0 to 1; above 1 is above all calibration images."""
    figures = wrong_pairs(NORMAL, outlying)
    missed = missed_by_rule(calibration, NORMAL, outlying, slice(None), params, 2)
    return Measurement("error on defects", one_figure(figures, IMAGES), "detector", figures, None, missed)


def outlying(share: float, rank: float) -> Floats:
    """Scores of which a share is above all others, and the rest has a rank among normal images."""
    scores = np.full(IMAGES, rank)
    scores[: round(share * IMAGES)] = 2.0
    return scores


def compared(candidate: Measurement, champion: Measurement | None, params: Params) -> Decision:
    return judge(candidate, champion, params.gate, None, COUNTS, IMAGES)


@pytest.mark.parametrize("control", ["batch", "stream"])
def test_a_detector_with_half_the_power_and_equal_auroc_is_rejected(
    control: Literal["batch", "stream"], params: Params
) -> None:
    # an AUROC of equal figures that the images are enough for
    margin = params.gate.margin.model_copy(update={"detector": 0.1})
    gate = params.gate.model_copy(update={"margin": margin})
    params = params.model_copy(update={"inbox": params.inbox.model_copy(update={"control": control}), "gate": gate})
    ranks = np.sort(NORMAL)
    champion = measured(outlying(0.6, ranks[IMAGES // 2]), params)
    # 0.6 + 0.4 * 0.5 = 0.3 + 0.7 * 0.714: the same AUROC
    candidate = measured(outlying(0.3, ranks[round(IMAGES * 0.5 / 0.7)]), params)
    assert candidate.value == pytest.approx(champion.value, abs=0.002)
    decision = compared(candidate, champion, params)
    assert not decision.passed
    assert decision.reason.startswith("rejected: where 5% of a batch have defects")
    assert re.search(r"the rule finds 0\.[123]\d\d of them, less than the champion's 0\.[56]", decision.reason)
    assert "the margin is 0.050" in decision.reason
    assert "error on defects" in decision.reason
    found = float(decision.figures["found"])
    # a stream in which the candidate flags nothing for a while has little to spend, and may find nothing at all
    assert found == pytest.approx(0.3, abs=0.03) if control == "batch" else 0.1 < found < 0.33
    assert float(decision.figures["champion_found"]) == pytest.approx(0.6, abs=0.03)
    assert decision.figures["found_margin"] == 0.05
    back = compared(champion, candidate, params)
    assert back.passed
    assert re.search(r"the rule finds 0\.[56]\d\d of them, more than the champion's 0\.[123]", back.reason)


def test_a_wider_margin_of_power_lets_less_power_pass(params: Params) -> None:
    champion, candidate = (measured(outlying(share, 0.5), params) for share in (0.6, 0.58))
    rules = params.gate
    loose = rules.model_copy(update={"margin": rules.margin.model_copy(update={"detector": 1.0, "power": 0.1})})
    strict = rules.model_copy(update={"margin": rules.margin.model_copy(update={"detector": 1.0, "power": 0.01})})
    assert judge(candidate, champion, loose, None, COUNTS, IMAGES).passed
    assert not judge(candidate, champion, strict, None, COUNTS, IMAGES).passed


def test_where_calibration_images_are_too_few_for_any_flag_it_is_said_and_nothing_is_blocked(params: Params) -> None:
    few = np.linspace(0.0, 1.0, 20)
    champion, candidate = (measured(outlying(share, 0.5), params, few) for share in (0.6, 0.6))
    decision = compared(candidate, champion, params)
    assert decision.passed
    assert "neither detector finds any of the defects by the rule, where 5% of a batch have them" in decision.reason
    assert "there are 20 calibration images" in decision.reason
    assert decision.figures["found"] == decision.figures["champion_found"] == 0.0
    first = compared(candidate, None, params)
    assert first.passed
    assert "it finds none of the defects by the rule, where 5% of a batch have them" in first.reason


def test_a_first_detectors_verdict_names_what_the_rule_finds(params: Params) -> None:
    reason = compared(measured(outlying(0.6, 0.5), params), None, params).reason
    assert re.search(r"where 5% of a batch have defects the rule finds 0\.[56]\d\d of them", reason)


def test_the_share_found_is_that_of_power_and_its_number_of_batches(params: Params) -> None:
    assert STREAMS * STREAM == BATCHES
    scores = NORMAL + np.random.default_rng(1).uniform(0, 0.8, IMAGES)
    batchwise = params.model_copy(update={"inbox": params.inbox.model_copy(update={"control": "batch"})})
    found = 1 - missed_by_rule(CALIBRATION, NORMAL, scores, slice(None), batchwise).value
    rate = params.detector.false_discovery_rate
    once = power(CALIBRATION, NORMAL, scores, rate=rate, share=SHARE, control="batch", seed=5).found
    assert found == pytest.approx(once, abs=0.02)
    assert 0.1 < found < 0.9


def test_the_gate_is_as_sure_of_what_is_found_as_resampled_simulations_are(params: Params) -> None:
    rng = np.random.default_rng(2)
    batchwise = params.model_copy(update={"inbox": params.inbox.model_copy(update={"control": "batch"})})
    scores = NORMAL + rng.uniform(0, 1.2, IMAGES)
    missed = missed_by_rule(CALIBRATION, NORMAL, scores, slice(None), batchwise)
    assert missed.figures is not None
    said = missed.figures(COUNTS).std(ddof=1)
    again = []
    for _ in range(40):
        drawn = rng.integers(0, IMAGES, IMAGES)
        again.append(missed_by_rule(CALIBRATION, NORMAL[drawn], scores[drawn], slice(None), batchwise, 4).value)
    assert said == pytest.approx(np.std(again, ddof=1), rel=0.35)


@pytest.mark.parametrize("worse", [0.0, 1.0])
def test_detectors_pass_about_as_often_as_the_margin_implies(worse: float, params: Params) -> None:
    rate = promoted_by_power(worse, params, images=400, runs=100, control="batch", streams=3, draws=100)
    low, high = rate.interval(0.999)
    assert low <= rate.expected <= high


def test_a_detector_that_finds_less_by_twice_the_margin_hardly_ever_passes(params: Params) -> None:
    assert promoted_by_power(2.0, params, images=400, runs=100, control="batch", streams=3, draws=100).share <= 0.05
