"""A detector that went worse on one kind of defect is refused, whatever it gained on the others."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from densitywatch.arrays import Floats
from densitywatch.data.defects import DEFECTS
from densitywatch.params import Params
from densitywatch.registry.gate import Decision, judge
from densitywatch.registry.measuring_detectors import FEWEST, by_kind
from densitywatch.registry.resampling import Measurement, Missed, bootstrap_counts, one_figure, wrong_pairs

IMAGES = 300
ROWS = np.arange(IMAGES)
COUNTS = bootstrap_counts(ROWS, 0, 200)
RUNS = 300


def measured(normal: Floats, outlying: Floats) -> Measurement:
    figures = wrong_pairs(normal, outlying, ROWS)
    missed = Missed(0.5, lambda counts: np.full(len(counts), 0.5), 3000)
    error = one_figure(figures, IMAGES)
    return Measurement("error on defects", error, "detector", figures, None, missed, by_kind(normal, outlying, ROWS))


def detector(rng: np.random.Generator, shift: Floats | float) -> Measurement:
    """Scores of images that are hard for every detector, with noise of this one's own."""
    own = rng.normal(size=(2, IMAGES)) * 0.3
    return measured(HARD + own[0], HARD + own[1] + shift)


HARD = np.random.default_rng(0).normal(size=IMAGES)
OF_ONE_KIND = np.arange(IMAGES) % len(DEFECTS) == list(DEFECTS).index("scratch")


def compared(candidate: Measurement, champion: Measurement, params: Params) -> Decision:
    # the ranking over all kinds is not what this is about
    margin = params.gate.margin.model_copy(update={"detector": 0.05})
    return judge(candidate, champion, params.gate.model_copy(update={"margin": margin}), None, COUNTS, IMAGES)


def test_a_kind_that_is_lost_is_named_though_the_whole_is_better(params: Params) -> None:
    rng = np.random.default_rng(1)
    champion = detector(rng, 1.5)
    candidate = detector(rng, np.where(OF_ONE_KIND, 0.0, 2.5))
    assert candidate.value < champion.value
    decision = compared(candidate, champion, params)
    assert not decision.passed
    assert decision.reason.startswith("rejected: on defects of the kind scratch its error is 0.")
    assert decision.reason.count("on defects of the kind") == 1
    assert decision.figures["error.scratch"] == candidate.kinds["scratch"].value
    assert decision.figures["champion_error.scratch"] == champion.kinds["scratch"].value
    assert {f"error.{kind}" for kind in DEFECTS} <= decision.figures.keys()
    assert compared(champion, champion, params).passed
    assert "of the kind" not in compared(champion, champion, params).reason


def test_equal_detectors_are_refused_for_a_kind_in_no_more_cases_than_promised(params: Params) -> None:
    rng = np.random.default_rng(2)
    strict = params.gate.model_copy(update={"margin": params.gate.margin.model_copy(update={"detector": 0.0})})
    refused = 0
    for _ in range(RUNS):
        decision = judge(detector(rng, 1.5), detector(rng, 1.5), strict, None, COUNTS, IMAGES)
        refused += "of the kind" in decision.reason
    assert stats.binomtest(refused, RUNS).proportion_ci(0.99).low <= 1 - params.gate.confidence, f"{refused} of {RUNS}"


def test_the_error_of_a_kind_is_that_of_the_pairs_with_its_images() -> None:
    rng = np.random.default_rng(3)
    normal, outlying = rng.normal(size=IMAGES), rng.normal(size=IMAGES)
    kinds = by_kind(normal, outlying, ROWS)
    assert list(kinds) == list(DEFECTS)
    wrong = (normal[:, None] > outlying[OF_ONE_KIND][None]).mean()
    assert kinds["scratch"].value == pytest.approx(wrong)
    few = np.arange(FEWEST * len(DEFECTS) - 1)
    assert list(by_kind(normal, outlying[few], few)) == list(DEFECTS)[:-1], "too few images of the last kind"


def test_a_figure_that_is_missing_or_no_number_is_refused(params: Params) -> None:
    good = detector(np.random.default_rng(4), 1.5)
    assert compared(good, good, params).passed
    without_one = {kind: one for kind, one in good.kinds.items() if kind != "scar"}
    broken = {**good.kinds, "scar": replace(good.kinds["scar"], value=math.nan)}
    missed = good.missed
    assert missed is not None
    for candidate, champion, said in (
        (replace(good, missed=None), good, "is missing"),
        (good, replace(good, missed=None), "is missing"),
        (replace(good, kinds=without_one), good, "is missing"),
        (good, replace(good, kinds=without_one), "is missing"),
        (replace(good, kinds=broken), good, "of the kind scar its error is nan"),
        (replace(good, missed=replace(missed, value=math.nan)), good, "it misses is nan"),
        (good, replace(good, missed=replace(missed, value=math.nan)), "nan"),
    ):
        decision = compared(candidate, champion, params)
        assert not decision.passed
        assert said in decision.reason


def test_few_images_of_a_kind_give_its_interval_few_degrees_of_freedom(params: Params) -> None:
    rng = np.random.default_rng(5)
    few = np.arange(FEWEST * len(DEFECTS))
    good, bad = (by_kind(HARD, HARD[few] + shift, few) for shift in (1.5, rng.normal(size=len(few))))
    assert {one.independent for one in good.values()} == {FEWEST}
    in_pairs = by_kind(HARD, HARD[few] + 1.5, few, np.arange(IMAGES) // (2 * len(DEFECTS)))
    assert {one.independent for one in in_pairs.values()} == {FEWEST // 2}, "images of one group count once"
    missed = detector(rng, 1.5).missed
    candidate, champion = (
        Measurement("error on defects", 0.3, "detector", None, None, missed, kinds) for kinds in (bad, good)
    )
    rules = params.gate.model_copy(update={"confidence": 0.99})
    reach = stats.t.ppf(1 - 0.01 / len(DEFECTS), FEWEST - 1)
    named = judge(candidate, champion, rules, None, COUNTS, IMAGES).reason
    for kind in DEFECTS:
        of_draws = bad[kind].figures, good[kind].figures
        assert of_draws[0] is not None
        assert of_draws[1] is not None
        margin = rules.margin.detector + rules.tolerance * good[kind].value
        spread = (of_draws[0](COUNTS) - (1 + rules.tolerance) * of_draws[1](COUNTS)).std(ddof=1)
        worse = bool(bad[kind].value - good[kind].value - reach * spread > margin)
        assert (f"of the kind {kind} " in named) == worse
