"""What a stream's flags promise is tested as a promise: streams are simulated, also by somebody who knows the rule."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densitywatch.detector import stream
from densitywatch.detector.conformal import benjamini_hochberg, p_values
from densitywatch.detector.stream import Gates, Past, after, decide, gates_of, tail_factor

N, Q = 6000, 0.1


def worst_ratios(n: int, sets: int, seed: int, *, strict: bool) -> np.ndarray:
    """Of calibration sets drawn anew: the largest true chance to score above a rank over its bound."""
    rng = np.random.default_rng(seed)
    used = np.array(stream.ranks(n))
    chances = np.array([np.sort(rng.uniform(size=n))[used - 1] for _ in range(sets)])
    return (chances * (n + 1) / used / tail_factor(n, strict=strict)).max(axis=1)


@pytest.mark.parametrize("n", [99, 999])
def test_the_bounds_hold_on_average_over_calibration_sets_and_strict_ones_for_nine_sets_of_ten(n: int) -> None:
    plain = worst_ratios(n, 4000, 0, strict=False)
    margin = 3 * plain.std() / np.sqrt(4000)
    assert 0.98 - margin < plain.mean() <= 1.0 + margin
    kept = (worst_ratios(n, 4000, 0, strict=True) <= 1).mean()
    assert abs(kept - 0.9) < 3 * np.sqrt(0.09 / 4000)


def likely_p(rng: np.random.Generator, images: int, alike: int) -> np.ndarray:
    """p-values of normal images in scenes. Each chance is as large as its bound: the worst that the proof allows."""
    factor = tail_factor(N)
    u = np.repeat(rng.uniform(size=-(-images // alike)), alike)[:images]
    p = np.ones(images)
    for rank in reversed(stream.ranks(N)):
        p[u <= factor * rank / (N + 1)] = rank / (N + 1)
    return p


def false_and_all(
    outliers: Callable[[Gates, np.random.Generator], int], images: int, alike: int, seed: int
) -> tuple[int, int]:
    """(false flags, flags) of a stream of 200 batches, where `outliers` sees what it takes to be flagged."""
    rng, past, wrong = np.random.default_rng(seed), Past(), 0
    for _ in range(200):
        budget = Q * max(1, past.flagged) - past.charged
        gates = gates_of(images, N, Q, budget, stream._risk(past, 1), alike=alike)
        p = likely_p(rng, images, alike)
        known = min(images, outliers(gates, rng))
        p[:known] = 1 / (N + 1)
        found = decide(p, N, Q, past, alike=alike)
        wrong += int(found.flags[known:].sum())
        past = after(past, int(found.flags.sum()), found.charged)
        assert Q * max(1, past.flagged) - past.charged > -1e-9, "no batch spends more than the budget"
    return wrong, past.flagged


def fewest_to_flag(gates: Gates) -> int | None:
    """How many images must score above all calibration images before any is flagged; None where no number is enough."""
    return min((few for _, few in gates.takes), default=None)


def nearly(gates: Gates, rng: np.random.Generator) -> int:
    """One scene fewer than it takes: each normal image that is added makes all of them flagged."""
    return max(0, (fewest_to_flag(gates) or 1) - 1)


ADVERSARIES: dict[str, Callable[[Gates, np.random.Generator], int]] = {
    "never": lambda gates, rng: 0,
    "one short": nearly,
    "often one short": lambda gates, rng: nearly(gates, rng) if rng.uniform() < 0.1 else 0,
    "rare": lambda gates, rng: int(rng.integers(1, 6)) if rng.uniform() < 0.02 else 0,
    "rich, then never": lambda gates, rng: 20 if rng.uniform() < 0.01 else 0,
}


@pytest.mark.parametrize("name", list(ADVERSARIES))
@pytest.mark.parametrize(("images", "alike"), [(30, 1), (300, 1), (60, 5)])
def test_false_flags_are_at_most_the_share_promised_of_all_flags_whoever_chooses_the_outliers(
    name: str, images: int, alike: int
) -> None:
    counts = np.array([false_and_all(ADVERSARIES[name], images, alike, seed) for seed in range(25)])
    excess = counts[:, 0] - Q * np.maximum(1, counts[:, 1])
    assert excess.mean() <= 3 * excess.std() / np.sqrt(25)


def test_in_a_stream_of_rare_outliers_most_are_found_and_the_pooled_share_holds_where_benjamini_hochberg_fails() -> (
    None
):
    rng, shares, per_batch, power = np.random.default_rng(1), [], [], []
    for _ in range(10):
        calibration, past, true, every = np.sort(rng.normal(size=N)), Past(), 0, 0
        flagged = np.zeros(2, dtype=int)
        for _ in range(500):
            known = int(rng.integers(1, 6)) if rng.uniform() < 0.02 else 0
            scores = rng.normal(size=60)
            scores[:known] += 100
            p = p_values(calibration, scores)
            found = decide(p, N, Q, past)
            past = after(past, int(found.flags.sum()), found.charged)
            true, every = true + int(found.flags[:known].sum()), every + known
            plain = benjamini_hochberg(p, Q)
            flagged += (plain.sum(), plain[known:].sum())
        shares.append((past.flagged - true) / max(1, past.flagged))
        per_batch.append(flagged[1] / flagged[0])
        power.append(true / every)
    assert np.mean(shares) <= Q
    assert np.mean(per_batch) > 0.5
    assert np.mean(power) > 0.8


def test_where_outliers_are_common_the_stream_finds_nearly_what_benjamini_hochberg_finds() -> None:
    rng, past, counts = np.random.default_rng(2), Past(), np.zeros((60, 2))
    calibration = np.sort(rng.normal(size=N))
    for batch in range(60):
        scores = rng.normal(size=400)
        scores[:20] += 3.5
        p = p_values(calibration, scores)
        found = decide(p, N, Q, past)
        past = after(past, int(found.flags.sum()), found.charged)
        counts[batch] = found.flags[:20].sum(), benjamini_hochberg(p, Q)[:20].sum()
    later = counts[20:].sum(0)
    assert later[0] > 0.75 * later[1]


@given(
    st.lists(st.lists(st.integers(1, 1000), max_size=40), max_size=8),
    st.integers(1, 5),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_whatever_the_p_values_the_budget_is_kept_and_the_smallest_are_flagged(
    batches: list[list[int]], alike: int, strict: bool
) -> None:
    past = Past()
    for batch in batches:
        p = np.array(batch) / 1000
        found = decide(p, 999, Q, past, alike=alike, strict=strict)
        again = decide(p, 999, Q, past, alike=alike, strict=strict)
        assert (found.flags == again.flags).all()
        assert found.charged == again.charged >= 0
        if len(p) == found.gates.images and found.flags.any():
            assert p[found.flags].max() < p[~found.flags].min(initial=2.0)
            assert found.flags.sum() >= (fewest_to_flag(found.gates) or 0)
        past = after(past, int(found.flags.sum()), found.charged)
        assert Q * max(1, past.flagged) - past.charged > -1e-9


def test_a_batch_flags_from_the_number_that_is_said_and_not_before() -> None:
    for images in (30, 300, 400):
        few = fewest_to_flag(gates_of(images, N, Q, Q, 0.01))
        assert few is not None
        for count, any_flagged in ((few, True), (few - 1, False)):
            p = np.ones(images)
            p[:count] = 1 / (N + 1)
            assert decide(p, N, Q, Past()).flags.any() == any_flagged


@pytest.mark.parametrize(("count", "rank", "flagged"), [(0, 0, 0), (1, 1, 0), (2, 8, 2), (3, 8, 3)])
def test_a_batch_is_charged_its_images_times_the_bound_of_the_largest_rank_that_one_image_more_would_open(
    count: int, rank: int, flagged: int
) -> None:
    # of 30 images, rank 1 opens with 2, rank 8 with 3, and rank 64 with 6, which the budget does not cover
    gates = gates_of(30, N, Q, Q, stream._risk(Past(), 1))
    assert (gates.ranks, gates.fewest, gates.before) == ((1, 8, 64), (2, 3, 6), (0, 0, 6))
    p = np.ones(30)
    p[:count] = 1 / (N + 1)
    found = decide(p, N, Q, Past())
    assert found.flags.sum() == flagged
    assert found.charged == pytest.approx(30 * tail_factor(N) * rank / (N + 1))


def test_the_blocks_of_a_batch_are_charged_one_by_one() -> None:
    p = np.ones(5000)
    p[[0, 200, 201, 400]] = 1 / (N + 1)  # blocks of 200 images, where rank 1 opens with 4
    found = decide(p, N, Q, Past())
    assert found.gates.images == 200
    assert found.gates.takes == [(1, 4)]
    assert found.charged == 0
    p[202] = 1 / (N + 1)
    p[[401, 402]] = 1 / (N + 1)
    assert decide(p, N, Q, Past()).charged == pytest.approx(2 * 200 * tail_factor(N) / (N + 1))


def test_the_longer_a_stream_is_quiet_the_more_it_takes_and_a_flag_resets_that() -> None:
    takes = [fewest_to_flag(gates_of(60, N, Q, Q, stream._risk(Past(quiet=q), 1))) for q in (0, 1_000, 100_000)]
    assert takes == sorted(takes)  # type: ignore[type-var]
    assert takes[0] < takes[-1]  # type: ignore[operator]
    assert after(Past(3, 0.1, 7), 2, 0.05) == Past(5, pytest.approx(0.15), 0)
    assert after(Past(3, 0.1, 7), 0, 0.0).quiet == 8


def test_a_batch_too_large_for_the_budget_is_decided_in_blocks_and_scenes_are_never_cut() -> None:
    p = np.ones(5000)
    p[:250] = 1 / (N + 1)  # outliers that come one after the other
    found = decide(p, N, Q, Past())
    assert found.gates.images < 5000
    assert found.flags[:250].sum() > 200
    assert not found.flags[250:].any()
    scenes = decide(p, N, Q, Past(), alike=5)
    assert scenes.gates.images == 5000
    assert fewest_to_flag(scenes.gates) is None
    assert not scenes.flags.any()


def test_nothing_is_flagged_in_an_empty_batch_and_values_that_make_no_sense_are_refused() -> None:
    assert decide([], N, Q, Past()).charged == 0
    with pytest.raises(ValueError, match="false-discovery rate"):
        decide([0.5], N, 1.0, Past())
    with pytest.raises(ValueError, match="alike"):
        decide([0.5], N, Q, Past(), alike=0)


def test_a_batch_of_a_hundred_thousand_is_decided_within_a_second() -> None:
    rng = np.random.default_rng(3)
    p = rng.integers(1, N + 2, 100_000) / (N + 1)
    tail_factor.cache_clear()
    for past in (Past(), Past(flagged=10_000)):
        start = time.process_time()  # of this process: the machine may be busy with others
        found = decide(p, N, Q, past)
        assert time.process_time() - start < 1
        assert found.gates.images == (206 if past.flagged == 0 else 100_000)
