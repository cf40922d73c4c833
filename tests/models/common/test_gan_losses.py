"""The losses of the game: those of the papers, and what is logged of it."""

from __future__ import annotations

import math

import pytest
import torch

from densitywatch.models.common.gan_losses import (
    discriminator_game_loss,
    discriminator_hinge_loss,
    game_logs,
    generator_game_loss,
    generator_hinge_loss,
)


def test_the_discriminators_loss_is_minus_the_games_value_and_log_4_where_it_cannot_tell() -> None:
    real, fake = torch.tensor([1.0, -0.5]), torch.tensor([0.3, 2.0])
    value = torch.log(torch.sigmoid(real)).mean() + torch.log(1 - torch.sigmoid(fake)).mean()
    assert float(discriminator_game_loss(real, fake)) == pytest.approx(-float(value), rel=1e-5)
    assert float(discriminator_game_loss(torch.zeros(3), torch.zeros(3))) == pytest.approx(math.log(4))


def test_the_generators_losses_are_those_of_the_paper() -> None:
    fake = torch.tensor([0.3, 2.0, -4.0])
    d = torch.sigmoid(fake)
    assert float(generator_game_loss(fake, "minimax")) == pytest.approx(float(torch.log(1 - d).mean()), rel=1e-5)
    assert float(generator_game_loss(fake, "non_saturating")) == pytest.approx(float(-torch.log(d).mean()), rel=1e-5)


def test_the_logs_count_right_answers_and_see_samples_that_are_all_alike() -> None:
    x = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    logs = game_logs(x, x[:1].expand(8, -1, -1, -1), torch.tensor([1.0, -1.0]), torch.tensor([-1.0, -1.0]))
    assert float(logs["discriminator_accuracy"]) == 0.75
    assert float(logs["spread_ratio"]) == pytest.approx(0.0, abs=1e-6)
    assert float(game_logs(x, x, torch.ones(1), torch.ones(1))["spread_ratio"]) == pytest.approx(1.0)


def test_one_image_has_no_spread_to_log() -> None:
    logs = game_logs(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), torch.ones(1), torch.ones(1))
    assert list(logs) == ["discriminator_accuracy"]


def test_the_hinge_losses_are_those_of_the_paper() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert float(discriminator_hinge_loss(real, fake)) == pytest.approx((0.0 + 0.5 + 2.0) / 3 + (0.0 + 1.0 + 2.0) / 3)
    assert float(generator_hinge_loss(fake)) == pytest.approx(2.0 / 3)


def test_a_loss_of_an_unknown_name_is_refused_and_not_taken_for_another() -> None:
    with pytest.raises(ValueError, match="least_squares: no loss of this name"):
        generator_game_loss(torch.zeros(2), "least_squares")  # type: ignore[arg-type]
