"""Cached sampling draws the very images that the naive loop draws, and refuses what does not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from densitywatch.errors import ModelError
from densitywatch.models import pixelcnn, pixelrnn
from densitywatch.models.common.pixel_head import draw_from_table
from densitywatch.models.common.sampling import walk

FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "pixelcnn": (pixelcnn, {"channels": 8, "dilations": (1, 2, 3), "components": 3}),
    "row_lstm": (pixelrnn, {"recurrence": "row_lstm", "channels": 4, "layers": 2, "components": 3}),
    "diagonal_bilstm": (pixelrnn, {"recurrence": "diagonal_bilstm", "channels": 4, "layers": 2, "components": 3}),
}


def model_of(
    family: str,
    channels: int = 1,
    *,
    classes: int = 0,
    size: int = 7,
    dtype: torch.dtype = torch.float64,
    **settings: Any,
) -> nn.Module:
    module, defaults = FAMILIES[family]
    torch.manual_seed(11)
    model: nn.Module = module.MODEL(
        module.Settings(**{**defaults, **settings}), channels=channels, size=size, classes=classes
    )
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return model.to(dtype).eval()


@torch.no_grad()
def naive_sample(
    model: nn.Module,
    n: int,
    labels: Tensor | None = None,
    generator: torch.Generator | None = None,
    given: Tensor | None = None,
    rows: int = 0,
) -> Tensor:
    """The reference: the whole network once a pixel, for the one pixel's distribution."""
    size = model.size
    x = torch.zeros(n, model.channels, size, size, dtype=torch.uint8)
    uniform = torch.rand(size, size, model.channels, n, generator=generator)
    for i in range(size):
        for j in range(size):
            if given is not None and i < rows:
                x[:, :, i, j] = given[:, :, i, j]
                continue
            here = model.features(x, labels)[:, :, i : i + 1, j : j + 1]
            for k, colour in enumerate(model.head.sequence):
                table = model.head.table(here, x[:, :, i : i + 1, j : j + 1], k)[:, :, 0, 0]
                x[:, colour, i, j] = draw_from_table(table, uniform[i, j, k])
    return x


def both(model: nn.Module, n: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    cached = model.sample(n, *args, generator=torch.Generator().manual_seed(7), **kwargs)
    return cached, naive_sample(model, n, *args, generator=torch.Generator().manual_seed(7), **kwargs)


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("head", ["softmax", "logistic_mixture"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("n", [1, 5])
def test_the_same_generator_gives_the_naive_loops_images_bit_for_bit(
    family: str, head: str, channels: int, n: int
) -> None:
    cached, naive = both(model_of(family, channels, head=head), n)
    assert cached.dtype == torch.uint8
    assert cached.shape == (n, channels, 7, 7)
    assert torch.equal(cached, naive)
    assert cached.unique().numel() > 10  # not all the same value


@pytest.mark.parametrize("order", ["rgb", "bgr", "gbr"])
def test_every_order_of_the_colours_gives_the_naive_loops_images(family: str, order: str) -> None:
    cached, naive = both(model_of(family, 3, colour_order=order, size=6), 3)
    assert torch.equal(cached, naive)


def test_with_labels_the_images_are_the_naive_loops_and_differ_by_label(family: str) -> None:
    model = model_of(family, classes=4, conditional=True)
    cached, naive = both(model, 4, torch.tensor([0, 3, 1, 3]))
    assert torch.equal(cached, naive)
    other, _ = both(model, 4, torch.tensor([1, 0, 1, 3]))
    assert torch.equal(other[2:], cached[2:])
    assert not torch.equal(other[:2], cached[:2])


@pytest.mark.parametrize("channels", [1, 3])
def test_given_rows_are_kept_and_the_rest_follows_as_in_the_naive_loop(family: str, channels: int) -> None:
    model = model_of(family, channels)
    given = torch.randint(0, 256, (3, channels, 7, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for rows in (0, 4, 7):
        cached, naive = both(model, 3, given=given, rows=rows)
        assert torch.equal(cached, naive)
        assert torch.equal(cached[:, :, :rows], given[:, :, :rows])


@pytest.mark.slow
def test_in_float32_the_images_are_the_naive_loops_but_for_rounding(family: str) -> None:
    cached, naive = both(model_of(family, size=12, dtype=torch.float32), 24)
    assert (cached == naive).float().mean().item() >= 0.999


def test_samples_follow_the_models_own_distribution(family: str) -> None:
    # the mean of -log p over samples is the entropy; that of a sharper or blunter sampler would lie beside it
    model = model_of(family, size=4, head="softmax")
    x = model.sample(1000, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        features = model.features(x)
        table = model.head.table(features, x, 0)
        entropy = -(table.exp() * table).sum(1).sum((1, 2))
        surprise = -model.log_prob(x)
    difference = surprise - entropy  # of mean zero when every pixel is drawn from its own table
    assert difference.mean().abs().item() < 4 * difference.std().item() / 1000**0.5


def test_one_walk_with_known_values_meets_the_models_probabilities(family: str) -> None:
    model = model_of(family, 3, head="softmax", size=5)
    x = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    values = iter(x[:, model.head.sequence].permute(2, 3, 1, 0).reshape(-1, 2).long())
    log_prob = torch.zeros(2, dtype=torch.float64)

    def choose(cumulated: Tensor) -> Tensor:
        value = next(values)
        edges = torch.cat([torch.zeros(2, 1), cumulated, torch.ones(2, 1)], 1)
        log_prob.add_(edges.diff(dim=1).gather(1, value.unsqueeze(1)).squeeze(1).log())
        return value

    assert torch.equal(walk(model, 2, None, choose), x)
    with torch.no_grad():
        assert torch.allclose(log_prob, model.log_prob(x), rtol=1e-6)


def test_images_can_be_used_in_training_afterwards(family: str) -> None:
    model = model_of(family)
    loss, _ = model.loss(model.sample(2))
    loss.backward()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"n": 0}, "at least one"),
        ({"n": 2, "labels": torch.tensor([0, 1])}, "a model without labels"),
        ({"n": 2, "rows": 3}, "no image"),
        ({"n": 2, "given": torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "rows": 3}, "this model's size"),
        ({"n": 2, "given": torch.zeros(2, 1, 7, 7), "rows": 3}, "must be uint8"),
        ({"n": 2, "given": torch.zeros(2, 1, 7, 7, dtype=torch.uint8), "rows": 8}, "cannot keep 8 rows"),
    ],
)
def test_a_wish_that_does_not_fit_the_model_is_refused_in_one_sentence(
    family: str, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        model_of(family).sample(**request_)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "say which label"),
        (torch.tensor([0]), "one an image"),
        (torch.tensor([0.0, 1.0]), "whole numbers"),
        (torch.tensor([0, 3]), r"0\.\.2"),
    ],
)
def test_labels_that_do_not_fit_a_conditional_model_are_refused(
    family: str, labels: Tensor | None, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        model_of(family, classes=3, conditional=True).sample(2, labels)
