"""The drift test of a stream: its bets are fair, normal streams stay silent as often as promised, changes are seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from densitywatch.arrays import Floats
from densitywatch.detector import stream_drift
from densitywatch.detector.conformal import p_values
from densitywatch.detector.stream_drift import HIGH, LOW, MEASURES, SHIFTS, Look, follow, look

CALIBRATION = 1000


def batch(scores: Floats, calibration: Floats, rng: np.random.Generator) -> Look:
    images = {"bits_per_dim": -scores, "brightness": rng.normal(size=len(scores))}
    return look(scores, p_values(calibration, scores), images, calibration, tie=rng.uniform())


def only(surprise: float) -> tuple[float | None, ...]:
    """Measures of a batch that has the first one alone."""
    return (surprise, *[None] * (len(MEASURES) - 1))


def scenes(rng: np.random.Generator, images: int, alike: int, *, foreign: float = 0.0, shift: float = 0.0) -> Floats:
    """Scores of a batch whose scenes have `alike` frames that are nearly equal; a share of the scenes is foreign."""
    scene = rng.normal(size=-(-images // alike)) + shift
    scene += 3.0 * (rng.uniform(size=len(scene)) < foreign)
    frames = np.repeat(scene, alike)[:images]
    return np.asarray(0.99 * frames + np.sqrt(1 - 0.99**2) * rng.normal(size=images))


def test_the_parts_of_the_capital_sum_to_one_however_long_the_stream_is() -> None:
    fresh, waiting = stream_drift._weights(np.arange(3 * stream_drift.HORIZON), np.array([0.0, 0.25]))
    assert (fresh[1:] > 0).all()
    assert fresh[0].tolist() == [0, 0.25]
    assert fresh.cumsum(axis=0) + waiting == pytest.approx(np.ones_like(fresh), abs=1e-9)


@pytest.mark.parametrize("earlier", [stream_drift.LEARN, 57])
def test_a_bet_on_a_rank_is_one_on_average_over_equally_likely_ranks(earlier: int) -> None:
    before = [Look(100, (), only(float(i)), 0.5) for i in range(earlier)]
    factors = []
    for place in range(earlier + 1):  # below the lowest, between each two, above the highest
        now = Look(100, (), only(place - 0.5), 0.5)
        factors.append(stream_drift._rank_bets([*before, now], 0)[-1])
    assert np.mean(factors, axis=0) == pytest.approx(np.ones(2 * len(SHIFTS)))
    assert max(map(max, factors)) > 10


def test_nothing_is_bet_on_ranks_before_there_are_batches_of_the_size_to_learn_from() -> None:
    looks = [Look(100, (), only(float(i)), 0.5) for i in range(stream_drift.LEARN)]
    assert (stream_drift._rank_bets(looks, 0) == 1).all()
    assert (stream_drift._rank_bets([*looks, replace(looks[-1], images=1000)], 0) == 1).all()
    assert not (stream_drift._rank_bets([*looks, looks[-1]], 0)[-1] == 1).any()
    assert (stream_drift._rank_bets([*looks, looks[-1]], 1) == 1).all(), "a measure that the batches do not have"


def test_equal_measures_are_ranked_by_their_random_numbers() -> None:
    looks = [Look(100, (), only(1.0), tie) for tie in np.linspace(0, 0.9, stream_drift.LEARN)]
    lowest, highest = (
        stream_drift._rank_bets([*looks, replace(looks[0], tie=tie)], 0)[-1][SHIFTS.index(2.0)] for tie in (-0.1, 0.95)
    )
    assert lowest < 0.1 < 1 < highest


def test_the_bounds_on_shares_hold_for_as_many_calibration_sets_as_they_say() -> None:
    rng = np.random.default_rng(1)
    sets, failure, ranks = 4000, 0.1, stream_drift._ranks(CALIBRATION, HIGH)
    calibration = np.sort(rng.uniform(size=(sets, CALIBRATION)), axis=1)
    low = stream_drift._ranks(CALIBRATION, LOW)
    # scores are uniform, so the true share beyond a calibration score is known; a factor is fair where it is at most 1
    true = np.concatenate(
        [1 - calibration[:, CALIBRATION - np.array(ranks)], calibration[:, np.array(low) - 1]], axis=1
    )
    looks = [Look(1, tuple(row), (None,) * len(MEASURES), 0.0) for row in true]
    unfair = (stream_drift._calibration_bets(looks, CALIBRATION, failure) > 1).any(axis=1)
    assert stats.binomtest(int(unfair.sum()), sets).proportion_ci(0.99).low <= failure
    assert unfair.mean() > failure / 20, "bounds that never fail are too wide to see anything"


def test_scores_equal_to_calibration_scores_are_not_beyond_them() -> None:
    calibration = np.repeat([0.0, 1.0], 50)
    bits = {"bits_per_dim": [np.nan] * 3, "brightness": [1.0, np.nan, 2.0]}
    kept = look([0.0, 1.0, 1.0], p_values(calibration, [0.0, 1.0, 1.0]), bits, calibration, tie=0.0)
    assert kept.shares[: len(HIGH)] == (0.0,) * len(HIGH)
    assert kept.shares[len(HIGH) :] == (0.0,) * len(LOW)
    assert kept.measures[2:] == (None, 1.5, None), "no density: no bits per dimension"


@pytest.mark.parametrize("alike", [1, 20])
def test_normal_streams_have_an_alarm_as_rarely_as_promised_whatever_their_scenes(alike: int) -> None:
    rng = np.random.default_rng(2)
    streams, promised, alarms, evidence = 60, 0.2, 0, []
    for _ in range(streams):
        calibration = np.sort(rng.normal(size=300))
        looks = [batch(scenes(rng, 60, alike), calibration, rng) for _ in range(100)]
        found = follow(looks, len(calibration), promised)
        alarms += found.alarm is not None
        evidence.append(found.evidence)
    assert stats.binomtest(alarms, streams).proportion_ci(0.99).low <= promised
    # few alarms show little: evidence is one on average, or less, and that sees a factor that is too large
    assert np.mean(evidence) + 3 * np.std(evidence) / np.sqrt(streams) <= 1


def test_evidence_is_what_the_parts_of_the_capital_have_won_by_the_test_that_won_most() -> None:
    rng = np.random.default_rng(6)
    calibration = np.sort(rng.normal(size=CALIBRATION))
    looks = [batch(scenes(rng, 60, 2, shift=0.3), calibration, rng) for _ in range(40)]
    a = 1e-9
    # question 1 has half of the promise, and half of that is for its bounds; five measures share the other half
    tests = [(0.25, 0.25, stream_drift._calibration_bets(looks, CALIBRATION, 0.25 * a))]
    tests += [(0.1, 0.0, stream_drift._rank_bets(looks, measure)) for measure in range(len(MEASURES))]
    won = []
    for share, first, bets in tests:
        part = (1 - first) / 2 / stream_drift.HORIZON  # of the capital, with each batch after the first
        begun = first * bets.prod(axis=0) + sum(part * bets[start:].prod(axis=0) for start in range(1, len(looks)))
        waiting = 1 - first - part * (len(looks) - 1)
        won.append(share * (begun + waiting).mean())
    found = follow(looks, CALIBRATION, a)
    assert found.alarm is None
    assert found.evidence == pytest.approx(max(won))


@pytest.mark.parametrize(("foreign", "shift"), [(0.05, 0.0), (0.0, 0.5), (0.0, -0.5)])
def test_a_change_is_seen_and_the_batch_it_began_with_is_named(foreign: float, shift: float) -> None:
    rng = np.random.default_rng(3)
    calibration = np.sort(rng.normal(size=CALIBRATION))
    looks = [batch(scenes(rng, 250, 2), calibration, rng) for _ in range(60)]
    looks += [batch(scenes(rng, 250, 2, foreign=foreign, shift=shift), calibration, rng) for _ in range(30)]
    found = follow(looks, CALIBRATION, 0.01)
    assert found.alarm is not None
    assert found.since is not None
    assert 60 <= found.alarm < 90
    assert abs(found.since - 60) <= 5
    assert found.evidence >= 100
    up, down = ("up", "down") if foreign or shift > 0 else ("down", "up")
    assert found.moved in {f"surprise {up}", "spread up", f"bits_per_dim {down}"}
    assert follow(looks[:60], CALIBRATION, 0.01).alarm is None
    assert follow(looks[: found.alarm + 1], CALIBRATION, 0.01) == found, "later batches change nothing about an alarm"


def test_a_stream_that_moved_before_its_first_batch_is_held_against_calibration() -> None:
    rng = np.random.default_rng(4)
    calibration = np.sort(rng.normal(size=CALIBRATION))
    looks = [batch(scenes(rng, 250, 5, shift=1.0), calibration, rng) for _ in range(20)]
    found = follow(looks, CALIBRATION, 0.01)
    assert found.alarm is not None
    assert found.alarm < 20
    assert found.since == 0


@pytest.mark.parametrize("place", [0, 80])
def test_one_batch_of_nothing_but_outliers_is_no_drift(place: int) -> None:
    rng = np.random.default_rng(5)
    calibration = np.sort(rng.normal(size=CALIBRATION))
    looks = [batch(scenes(rng, 250, 1), calibration, rng) for _ in range(120)]
    looks[place] = batch(scenes(rng, 250, 1, shift=20.0), calibration, rng)
    assert follow(looks, CALIBRATION, 0.01).alarm is None


def test_a_stream_of_no_batches_shows_nothing_and_a_share_beyond_one_is_refused() -> None:
    assert follow([], CALIBRATION, 0.01).evidence == 0.0
    with pytest.raises(ValueError, match="share of streams"):
        follow([], CALIBRATION, 1.0)
