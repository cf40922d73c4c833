"""The distribution of one pixel: normalised at every extreme, colours in sequence, drawn by inversion."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from densitywatch.models.common.pixel_head import PixelHead, draw_from_table, logistic_mixture_log_prob

HEADS = ("softmax", "logistic_mixture")
ORDERS = ("rgb", "rbg", "grb", "gbr", "brg", "bgr")


def head_of(kind: Any, channels: int, order: str = "rbg", dtype: torch.dtype = torch.float64) -> PixelHead:
    torch.manual_seed(3)
    head = PixelHead(6, channels, kind=kind, components=4, colour_order=order).to(dtype)
    for parameter in head.parameters():  # biases start at zero or structured: shake all of them
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    return head


def images(n: int, channels: int, size: int = 3) -> Tensor:
    return torch.randint(
        0, 256, (n, channels, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(5)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logistic_mixture_sums_to_one_over_all_values_at_every_extreme(dtype: torch.dtype) -> None:
    cases = list(itertools.product([-60.0, 0.0, 60.0], [-40.0, -1.0, 0.003, 1.0, 40.0], [-30.0, -7.0, -2.0, 0.0, 12.0]))
    mixture = torch.tensor(cases, dtype=dtype).t().unsqueeze(1)  # (3, 1, cases): each component alone
    pairs = torch.stack([mixture[:, 0], mixture[:, 0].flip(1)], 1)  # (3, 2, cases): and mixed with another
    for parameters in (mixture, pairs):
        values = torch.arange(256).unsqueeze(1).expand(256, len(cases))
        log_probs = logistic_mixture_log_prob(values, parameters.unsqueeze(2).expand(-1, -1, 256, -1))
        assert not log_probs.isnan().any()
        assert torch.allclose(log_probs.exp().sum(0), torch.ones(len(cases), dtype=dtype), atol=2e-5)


def test_logistic_mixture_has_finite_gradients_at_every_extreme() -> None:
    values = torch.tensor([0, 1, 128, 254, 255])
    for mean, log_scale in itertools.product([-40.0, -1.0, 0.0, 1.0, 40.0], [-30.0, -7.0, 0.0, 12.0]):
        parameters = (
            torch.tensor([[0.0, 5.0], [mean, 0.0], [log_scale, -3.0]]).unsqueeze(2).repeat(1, 1, 5).requires_grad_()
        )
        log_probs = logistic_mixture_log_prob(values, parameters)
        log_probs.sum().backward()
        assert log_probs.isfinite().all()
        assert parameters.grad is not None
        assert parameters.grad.isfinite().all()


def test_logistic_mixture_agrees_with_differences_of_the_cumulative_distribution() -> None:
    mean, scale = 0.1, math.exp(-1.5)
    parameters = torch.tensor([[0.0], [mean], [-1.5]], dtype=torch.float64).unsqueeze(2).expand(-1, -1, 256)
    edges = torch.cat([torch.tensor([-math.inf]), (torch.arange(255) + 0.5) / 127.5 - 1.0, torch.tensor([math.inf])])
    expected = torch.sigmoid((edges.double() - mean) / scale).diff()
    assert torch.allclose(logistic_mixture_log_prob(torch.arange(256), parameters).exp(), expected, atol=1e-7)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_colours_table_sums_to_one(kind: str, channels: int) -> None:
    head, x = head_of(kind, channels), images(4, channels)
    features = torch.randn(4, 6, 3, 3, dtype=torch.float64) * 20  # far from anything that training gives
    for k in range(channels):
        table = head.table(features, x, k)
        assert table.shape == (4, 256, 3, 3)
        assert torch.allclose(table.exp().sum(1), torch.ones(4, 3, 3, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_expected_value_is_the_tables_mean(kind: str, channels: int) -> None:
    head, x = head_of(kind, channels), images(4, channels)
    features = torch.randn(4, 6, 3, 3, dtype=torch.float64) * 3
    values = torch.arange(256, dtype=torch.float64).view(1, 256, 1, 1)
    for k in range(channels):
        mean = (head.table(features, x, k).exp() * values).sum(1)
        assert torch.allclose(head.expected(features, x, k), mean, atol=1e-6)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("channels", [1, 3])
def test_log_prob_is_the_tables_entry_of_each_colour(kind: str, channels: int) -> None:
    head, x = head_of(kind, channels), images(4, channels)
    features = torch.randn(4, 6, 3, 3, dtype=torch.float64)
    log_prob = head.log_prob(features, x)
    for k, colour in enumerate(head.sequence):
        entry = head.table(features, x, k).gather(1, x[:, colour].long().unsqueeze(1)).squeeze(1)
        assert torch.allclose(log_prob[:, k], entry, atol=1e-10)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("order", ORDERS)
def test_a_colour_depends_on_the_colours_before_it_in_the_sequence_and_on_no_other(kind: str, order: str) -> None:
    head = head_of(kind, 3, order)
    features = torch.randn(1, 6, 1, 1, dtype=torch.float64)
    x = (torch.rand(1, 3, 1, 1, dtype=torch.float64) * 255).requires_grad_()
    for k in range(3):
        (gradient,) = torch.autograd.grad(head.parameters_of(features, x)[:, k].square().sum(), x)
        seen = {"rgb"[c] for c in range(3) if gradient[0, c].abs().item() > 0}
        assert seen == set(order[:k])


def test_draws_follow_the_table() -> None:
    table = torch.tensor([0.5, 0.0, 0.2, 0.3]).log()
    log_probs = torch.full((1, 256), -math.inf)
    log_probs[0, 10:14] = table
    uniform = (torch.arange(10000) + 0.5) / 10000
    drawn = draw_from_table(log_probs.expand(10000, 256), uniform)
    assert torch.bincount(drawn.long(), minlength=256)[10:14].tolist() == [5000, 0, 2000, 3000]


def test_a_draw_never_takes_a_value_without_probability_even_at_the_ends() -> None:
    log_probs = torch.full((2, 256), -math.inf)
    log_probs[:, 7] = 0.0
    assert draw_from_table(log_probs, torch.tensor([0.0, 1 - 2**-24])).tolist() == [7, 7]
