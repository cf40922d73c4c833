"""Walks and arithmetic in the latent space, on a decoder whose every answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from densitywatch.evaluation.measures import latent
from densitywatch.evaluation.measures.context import Context
from densitywatch.evaluation.measures.latent import at_length, latent_space, slerp, walk


def test_a_walk_on_the_sphere_starts_and_ends_where_it_should_and_turns_evenly() -> None:
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    way = slerp(a, b, torch.linspace(0, 1, 4))
    assert torch.allclose(way[0], a, atol=1e-6)
    assert torch.allclose(way[-1], b, atol=1e-6)
    assert torch.allclose(way.norm(dim=1), torch.full((4,), 2.0))
    angles = torch.atan2(way[:, 1], way[:, 0])
    assert torch.allclose(angles, torch.arange(4) * math.pi / 6, atol=1e-6)


def test_lengths_go_evenly_from_one_end_to_the_other() -> None:
    way = slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0]), torch.tensor([0.0, 0.5, 1.0]))
    assert torch.allclose(way.norm(dim=1), torch.tensor([1.0, 2.0, 3.0]))


def test_a_walk_between_equal_latents_stays() -> None:
    a = torch.tensor([1.0, 2.0])
    assert torch.allclose(slerp(a, a, torch.linspace(0, 1, 3)), a.expand(3, 2))


def test_the_weights_of_labels_go_straight_and_the_rest_along_the_sphere() -> None:
    a, b = torch.tensor([2.0, 0.0, 1.0, 0.0]), torch.tensor([0.0, 2.0, 0.0, 1.0])
    half = walk(a, b, torch.tensor([0.5]), gaussian=2)[0]
    assert torch.allclose(half, torch.tensor([math.sqrt(2), math.sqrt(2), 0.5, 0.5]))


def test_arithmetic_sets_the_length_of_the_gaussian_part_alone() -> None:
    moved = at_length(torch.tensor([[3.0, 4.0, 1.0], [0.0, 0.5, 2.0]]), 2, torch.tensor(10.0))
    assert torch.allclose(moved, torch.tensor([[6.0, 8.0, 1.0], [0.0, 10.0, 2.0]]))


class Signs(torch.nn.Module):
    """A model of two classes: a latent whose first number is positive is a bright image, any other a dark one."""

    def __init__(self, far: float) -> None:
        super().__init__()
        self.settings, self.far = SimpleNamespace(latent=2), far

    def latents(self, n: int, labels: Any = None, generator: torch.Generator | None = None) -> torch.Tensor:
        z = torch.randn(n, 2, generator=generator)
        return z + self.far * torch.sign(z[:, :1]) * torch.tensor([[1.0, 0.0]])

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        value = torch.where(z[:, 0] > 0, 200, 20).to(torch.uint8)
        return value[:, None, None, None].expand(-1, 1, 8, 8)

    def sample(self, n: int, labels: Any = None, generator: torch.Generator | None = None) -> torch.Tensor:
        return self.decode(self.latents(n, generator=generator))


class Brightness(torch.nn.Module):
    """A feature network that tells bright from dark."""

    def __init__(self) -> None:
        super().__init__()
        self.out = torch.nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.float().mean((1, 2, 3))
        return torch.stack([100 - mean, mean - 100], 1)


@pytest.fixture
def context_with(context_of: Callable[..., Context], project: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(latent, "feature_network", lambda context: Brightness())
    return lambda model, **changes: context_of(model, **({"classifier": project} | changes))


def test_moving_by_the_difference_of_class_means_gives_the_class_that_was_added(context_with: Any) -> None:
    context = context_with(Signs(far=3.0))
    result = latent_space(context)
    assert result is not None
    assert result.metrics == {"interpolation_accuracy": pytest.approx(1.0, abs=0.1), "latent_arithmetic_accuracy": 1.0}
    for figure in result.figures:
        assert (context.out / figure.file).stat().st_size > 100
    assert "200 draws" in result.figures[1].caption


class Tinted(Signs):
    """A model of two labels: the label sets a brightness, and the latent's first number moves the image from it."""

    def latents(self, n: int, labels: Any = None, generator: torch.Generator | None = None) -> torch.Tensor:
        weights = torch.nn.functional.one_hot(torch.arange(n) % 2, 2).float()
        return torch.cat([torch.randn(n, 2, generator=generator), weights], 1)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        assert ((z[:, 2:] == 1).sum(1) == 1).all() or not self.one_label, "the label moved"
        value = (z[:, 3] * 100 + 70 + self.far * z[:, 0]).clamp(0, 255).to(torch.uint8)
        return value[:, None, None, None].expand(-1, 1, 8, 8)

    one_label = False


def test_in_a_model_that_takes_labels_arithmetic_moves_the_latent_and_leaves_the_label(
    context_with: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = latent_space(context_with(Tinted(far=15.0)))
    assert result is not None
    assert result.metrics["latent_brightness_accuracy"] == 1.0
    assert "latent_arithmetic_accuracy" not in result.metrics
    monkeypatch.setattr(Tinted, "one_label", True)
    monkeypatch.setattr(latent, "strips", lambda space, rng: space.decode(space.latents[:9]))
    alone = latent_space(context_with(Tinted(far=15.0), classifier=None))
    assert alone is not None
    assert alone.metrics == {"latent_brightness_accuracy": 1.0}
    assert "the start in 0%" in alone.figures[1].caption


def test_where_the_latent_has_no_say_arithmetic_brightens_nothing(context_with: Any) -> None:
    result = latent_space(context_with(Tinted(far=0.0), classifier=None))
    assert result is not None
    assert result.metrics == {"latent_brightness_accuracy": 0.0}


def test_with_too_few_latents_of_each_label_there_is_no_arithmetic(
    context_with: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent, "POOL", 30)
    result = latent_space(context_with(Tinted(far=15.0), classifier=None))
    assert result is not None
    assert result.metrics == {}


def test_a_space_of_one_class_has_strips_and_says_why_there_is_no_arithmetic(context_with: Any) -> None:
    model = Signs(far=3.0)
    model.decode = lambda z: torch.full((len(z), 1, 8, 8), 200, dtype=torch.uint8)  # type: ignore[method-assign]
    result = latent_space(context_with(model))
    assert result is not None
    assert result.metrics == {}
    assert [figure.file for figure in result.figures] == ["interpolation.png"]
    assert "left out" in result.notes[0]


def test_without_labels_the_strips_are_drawn_all_the_same(context_with: Any) -> None:
    result = latent_space(context_with(Signs(far=1.0), classifier=None))
    assert result is not None
    assert [figure.file for figure in result.figures] == ["interpolation.png"]
    assert "left out" in result.notes[0]


def test_models_without_a_prior_or_without_a_decoder_have_no_latent_space(context_with: Any) -> None:
    assert latent_space(context_with(torch.nn.Linear(1, 1))) is None


@pytest.mark.parametrize("name", ["vae"])
def test_a_model_with_an_encoder_walks_between_training_images(
    name: str, context_of: Callable[..., Context], project: Path
) -> None:
    from densitywatch.models.storage import load_model_folder

    result = latent_space(context_of(load_model_folder(project / "models" / name)))
    assert result is not None
    assert result.figures
