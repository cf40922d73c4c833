"""What the theory of the adversarial game promises, measured with the losses that the models train by."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from densitywatch.evaluation.measures.adversarial_game import (
    P_DATA,
    P_GENERATOR,
    best_discriminator,
    game_value,
    gradient_norms,
    play,
    train_discriminator,
)

DATA, GENERATOR = torch.tensor(P_DATA), torch.tensor(P_GENERATOR)


def test_the_generators_gradient_vanishes_under_minimax_and_not_under_the_non_saturating_loss(
    digits: tuple[np.ndarray, np.ndarray],
) -> None:
    rows = gradient_norms(digits[0][:500], seed=1)
    first, last = rows[0], rows[-1]
    ratio = last["non_saturating"] / last["minimax"]
    print(
        f"gradient norm, non-saturating over minimax: {ratio:.3g} ({last['non_saturating']:.3g}, {last['minimax']:.3g})"
    )
    assert first["non_saturating"] / first["minimax"] == pytest.approx(
        1.0, abs=0.5
    )  # D is about 1/2: no difference yet
    assert last["minimax"] < 0.2 * first["minimax"]
    assert last["non_saturating"] > first["non_saturating"]
    assert ratio > 100


def test_the_same_seed_gives_the_same_gradients(digits: tuple[np.ndarray, np.ndarray]) -> None:
    first, again = (gradient_norms(digits[0][:100], seed=3, steps=4) for _ in range(2))
    assert first == again


def test_the_trained_discriminator_approaches_p_data_over_p_data_plus_p_g() -> None:
    logits = train_discriminator(DATA, GENERATOR, seed=1)
    assert torch.allclose(torch.sigmoid(logits), best_discriminator(DATA, GENERATOR), atol=0.02)


def test_the_value_under_the_best_discriminator_is_minus_log_4_plus_twice_the_jensen_shannon_divergence() -> None:
    middle = (DATA + GENERATOR) / 2
    divergence = 0.5 * ((DATA * (DATA / middle).log()).sum() + (GENERATOR * (GENERATOR / middle).log()).sum())
    value = game_value(torch.logit(best_discriminator(DATA, GENERATOR)), DATA, GENERATOR)
    assert value == pytest.approx(-math.log(4) + 2 * float(divergence), abs=1e-5)


@pytest.mark.slow
def test_the_value_falls_to_minus_log_4_as_the_generator_approaches_the_data() -> None:
    values = []
    for share in (0.0, 0.5, 0.9, 1.0):
        generator = share * DATA + (1 - share) * GENERATOR
        logits = train_discriminator(DATA, generator, seed=2)
        values.append(game_value(logits, DATA, generator))
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(-math.log(4), abs=1e-3)


@pytest.mark.slow
def test_playing_the_game_brings_the_generator_to_the_data_and_the_value_to_minus_log_4() -> None:
    rows = play(DATA, seed=1)
    assert rows[0]["distance"] > 0.1
    assert rows[-1]["distance"] < 0.005
    assert rows[-1]["value"] == pytest.approx(-math.log(4), abs=1e-3)
