from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from densitywatch.errors import ModelError
from densitywatch.evaluation.measures import likelihood
from densitywatch.evaluation.measures.context import Context
from densitywatch.evaluation.measures.likelihood import bounds, exact_likelihood
from tests.evaluation.conftest import COUNTS

Make = Callable[..., Context]


class Uniform(nn.Module):
    """Every value of every pixel equally likely: 8 bits/dim by definition."""

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.full((len(x),), -x[0].numel() * math.log(256))


class Labelled(nn.Module):
    """Uniform for label 3, four times less likely for every other label."""

    settings = SimpleNamespace(conditional=True)

    def log_prob(self, x: Tensor) -> Tensor:
        raise AssertionError("the table by label gives everything in one pass")

    def log_prob_by_label(self, x: Tensor) -> Tensor:
        nats = torch.full((len(x), 10), -x[0].numel() * math.log(256) - math.log(4.0))
        nats[:, 3] += math.log(4.0)
        return nats


class Bounded(nn.Module):
    def elbo_terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        dimensions = x[0].numel() * math.log(2)
        return torch.full((len(x),), -3.0 * dimensions), torch.full((len(x),), 0.5 * dimensions)

    def importance_bound(self, x: Tensor, samples: int) -> Tensor:
        assert samples == 3
        return torch.full((len(x),), -3.25 * x[0].numel() * math.log(2))


def test_a_uniform_model_needs_eight_bits_for_each_number(context_of: Make) -> None:
    context = context_of(Uniform())
    result = exact_likelihood(context)
    assert result is not None
    assert result.metrics["bits_per_dim"] == pytest.approx(8)
    assert result.metrics["bits_per_dim_stderr"] == pytest.approx(0, abs=1e-9)
    assert [figure.file for figure in result.figures] == ["bits_per_dim.svg"]
    assert context.shared["test_log_prob"].shape == (COUNTS["test"],)


def test_the_speed_is_that_after_the_first_batch_in_which_a_model_is_compiled(
    context_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = [0.0]

    class Compiles(Uniform):
        left = 60.0

        def log_prob(self, x: Tensor) -> Tensor:
            seconds[0] += self.left + 0.5
            self.left = 0.0
            return super().log_prob(x)

    monkeypatch.setattr(likelihood.time, "perf_counter", lambda: seconds[0])
    result = exact_likelihood(context_of(Compiles()))
    assert result is not None
    assert result.metrics["score_images_per_second"] == pytest.approx((20 + 8) / 1.0)  # 20, 20 and 8 images


def test_the_standard_error_is_that_of_the_mean(context_of: Make) -> None:
    class Uneven(nn.Module):
        def log_prob(self, x: Tensor) -> Tensor:
            return -x.double().mean((1, 2, 3))

    context = context_of(Uneven())
    result = exact_likelihood(context)
    assert result is not None
    bits = -context.shared["test_log_prob"] / (64 * math.log(2))
    assert result.metrics["bits_per_dim_stderr"] == pytest.approx(np.std(bits, ddof=1) / math.sqrt(len(bits)))


def test_a_conditional_density_is_judged_by_its_mixture_over_labels(context_of: Make) -> None:
    context = context_of(Labelled())
    result = exact_likelihood(context)
    assert result is not None
    mixture = 8 - math.log2((1 + 9 / 4) / 10) / 64
    assert result.metrics["bits_per_dim"] == pytest.approx(mixture)
    labels = np.load(context.data / "test_labels.npy")
    given = 8 + 2 * (labels != 3).mean() / 64
    assert result.metrics["bits_per_dim_given_label"] == pytest.approx(given)
    assert context.shared["test_log_prob_by_label"].shape == (COUNTS["test"], 10)


def test_likelihood_given_the_label_is_left_out_of_data_without_labels(context_of: Make) -> None:
    context = context_of(Labelled())
    np.save(context.data / "test_labels.npy", np.full(COUNTS["test"], -1))
    result = exact_likelihood(context)
    assert result is not None
    assert "bits_per_dim_given_label" not in result.metrics


def test_bounds_are_named_as_bounds_and_their_terms_add_up(context_of: Make) -> None:
    result = bounds(context_of(Bounded()))
    assert result is not None
    assert "bits_per_dim" not in result.metrics
    assert result.metrics["elbo_bits_per_dim"] == pytest.approx(3.5)
    assert result.metrics["elbo_reconstruction_bits_per_dim"] == pytest.approx(3.0)
    assert result.metrics["elbo_kl_bits_per_dim"] == pytest.approx(0.5)
    assert result.metrics["iwae_bits_per_dim"] == pytest.approx(3.25)
    assert (result.metrics["iwae_samples"], result.metrics["iwae_images"]) == (3, 10)
    assert all("bound" in figure.title for figure in result.figures)


def test_an_evaluator_that_does_not_fit_the_model_leaves_it_alone(context_of: Make) -> None:
    assert exact_likelihood(context_of(Bounded())) is None
    assert bounds(context_of(Uniform())) is None
    assert bounds(context_of(nn.Identity())) is None


def test_a_likelihood_that_is_not_a_number_is_a_named_error(context_of: Make) -> None:
    class Broken(nn.Module):
        def log_prob(self, x: Tensor) -> Tensor:
            nats: Any = torch.zeros(len(x))
            nats[0] = math.nan
            return nats

    with pytest.raises(ModelError, match=r"standin: bits/dim is not a finite number for 3 of 48 test images"):
        exact_likelihood(context_of(Broken()))
