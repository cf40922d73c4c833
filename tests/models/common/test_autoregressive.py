"""What makes a model with pixels in sequence a density, proven alike for every such model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from densitywatch.models import pixelcnn, pixelrnn

SIZE = 7

FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "pixelcnn": (pixelcnn, {"channels": 6, "dilations": (1, 2), "components": 3}),
    "row_lstm": (pixelrnn, {"recurrence": "row_lstm", "channels": 3, "layers": 2, "components": 3}),
    "diagonal_bilstm": (pixelrnn, {"recurrence": "diagonal_bilstm", "channels": 3, "layers": 2, "components": 3}),
}


def model_of(family: str, channels: int = 1, *, classes: int = 0, size: int = SIZE, **settings: Any) -> nn.Module:
    module, defaults = FAMILIES[family]
    torch.manual_seed(11)
    model: nn.Module = module.MODEL(
        module.Settings(**{**defaults, **settings}), channels=channels, size=size, classes=classes
    ).double()
    for parameter in model.parameters():  # zeros at the start would hide a wrong dependence
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def images(n: int, channels: int, size: int = SIZE) -> Tensor:
    return torch.randint(
        0, 256, (n, channels, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(5)
    )


def dependence(model: nn.Module, channels: int, labels: Tensor | None = None) -> Tensor:
    """(H*W, C, H*W): whether the features of pixel p move with colour c of pixel q, by gradient."""
    size = model.size
    x = (images(1, channels, size).double().expand(size * size, -1, -1, -1)).clone().requires_grad_()
    labels = None if labels is None else labels.expand(size * size)
    features = model.features(x, labels).flatten(2)
    at_its_own_pixel = features[torch.arange(size * size), :, torch.arange(size * size)]
    (gradient,) = torch.autograd.grad(at_its_own_pixel.sin().sum(), x)
    return gradient.flatten(2).abs() > 0


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("channels", [1, 3])
def test_no_pixel_depends_on_itself_or_on_a_later_one(family: str, channels: int) -> None:
    moved = dependence(model_of(family, channels), channels)
    later = torch.ones(SIZE**2, SIZE**2).triu().bool()
    assert not moved.permute(1, 0, 2)[:, later].any()


def test_no_pixel_depends_on_a_later_one_given_a_label(family: str) -> None:
    moved = dependence(model_of(family, classes=3, conditional=True), 1, torch.tensor([2]))
    assert not moved[:, 0][torch.ones(SIZE**2, SIZE**2).triu().bool()].any()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("head", ["softmax", "logistic_mixture"])
def test_changing_one_pixel_moves_no_earlier_distribution_and_moves_its_successors(
    family: str, channels: int, head: str
) -> None:
    model, x = model_of(family, channels, head=head), images(1, channels)
    with torch.no_grad():
        before = all_tables(model, x)
        for i, j in [(0, 0), (2, SIZE - 1), (3, 3), (SIZE - 1, SIZE - 2)]:
            changed = x.clone()
            changed[:, model.head.sequence[-1], i, j] ^= 128
            moved = (all_tables(model, changed) != before).flatten(3).any(2)[0]  # (C, H*W)
            here = i * SIZE + j
            assert not moved[:, : here + 1].any()  # the last colour of the sequence moves nothing of its own pixel
            assert moved[:, here + 1 :].any()


def all_tables(model: nn.Module, x: Tensor) -> Tensor:
    features = model.features(x)
    return torch.stack([model.head.table(features, x, k) for k in range(model.channels)], 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("head", ["softmax", "logistic_mixture"])
def test_every_pixels_probabilities_sum_to_one(family: str, channels: int, head: str) -> None:
    model = model_of(family, channels, head=head)
    with torch.no_grad():
        total = all_tables(model, images(2, channels)).exp().sum(2)
    assert torch.allclose(total, torch.ones_like(total), atol=1e-9)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("head", ["softmax", "logistic_mixture"])
def test_log_prob_is_the_sum_of_the_tables_entries(family: str, channels: int, head: str) -> None:
    model, x = model_of(family, channels, head=head), images(3, channels)
    with torch.no_grad():
        values = x[:, model.head.sequence].long().unsqueeze(2)
        expected = all_tables(model, x).gather(2, values).sum((1, 2, 3, 4))
        assert torch.allclose(model.log_prob(x), expected, rtol=1e-10)
        assert torch.allclose(model.log_prob_map(x).sum((1, 2)), expected, rtol=1e-10)


def test_all_values_of_a_pixel_together_have_probability_one_by_log_prob_itself(family: str) -> None:
    model = model_of(family, size=3)
    x = images(1, 1, 3).repeat(256, 1, 1, 1)
    x[:, 0, 1, 1] = torch.arange(256, dtype=torch.uint8)
    with torch.no_grad():
        assert model.log_prob_map(x)[:, 1, 1].exp().sum().item() == pytest.approx(1.0, abs=1e-9)


def test_the_label_moves_every_pixel_of_a_conditional_model(family: str) -> None:
    model, x = model_of(family, classes=3, conditional=True), images(1, 1)
    with torch.no_grad():
        moved = model.log_prob_map(x, torch.tensor([0])) != model.log_prob_map(x, torch.tensor([2]))
    assert moved.all()


def test_without_labels_a_conditional_model_answers_with_the_mixture_over_them(family: str) -> None:
    model, x = model_of(family, classes=3, conditional=True), images(2, 1)
    with torch.no_grad():
        by_label = torch.stack([model.log_prob(x, torch.full((2,), label)) for label in range(3)], 1)
        assert torch.allclose(model.log_prob_by_label(x), by_label)
        assert torch.allclose(model.log_prob(x), by_label.logsumexp(1) - math.log(3), rtol=1e-9)


def test_a_conditional_model_of_a_dataset_without_labels_is_one_density(family: str) -> None:
    model, plain = model_of(family, classes=0, conditional=True), model_of(family, classes=0)
    x = images(2, 1)
    with torch.no_grad():
        assert not model.conditional
        assert torch.equal(model.log_prob(x), plain.log_prob(x))
        assert torch.equal(model.loss(x, torch.tensor([-1, -1]))[0], plain.loss(x)[0])
        assert torch.equal(model.sample(2, generator=seeded()), plain.sample(2, generator=seeded()))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_loss_is_the_mean_of_bits_per_dimension(family: str) -> None:
    model, x = model_of(family), images(3, 1)
    loss, logged = model.loss(x)
    bits = -model.log_prob(x).mean() / (SIZE**2 * torch.log(torch.tensor(2.0)).double())
    assert loss.item() == pytest.approx(bits.item())
    assert logged["bits_per_dim"].item() == pytest.approx(bits.item())


@pytest.mark.slow
def test_a_short_training_lowers_the_loss(family: str) -> None:
    model, x = model_of(family).float(), images(8, 1) // 2
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(15):
        loss, _ = model.loss(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2


def test_encode_gives_one_row_of_numbers_an_image(family: str) -> None:
    with torch.no_grad():
        z = model_of(family, 3).encode(images(3, 3))
    assert z.shape[0] == 3
    assert z.ndim == 2
    assert z.isfinite().all()
