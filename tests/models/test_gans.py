"""The three adversarial models: what the papers ask of their layers and losses, tested as maths."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from densitywatch.models import conditional_gan, dcgan, gan
from densitywatch.models.common.layers import discriminator_game_loss, game_logs, generator_game_loss
from densitywatch.models.conditional_gan import ConditionalBatchNorm, ConditionalGAN

SMALL: dict[Any, dict[str, Any]] = {
    gan: {"generator": (8, 12), "discriminator": (12, 8)},
    dcgan: {"generator_channels": 16, "discriminator_channels": 4},
    conditional_gan: {"generator_channels": 16, "discriminator_channels": 4},
}


def small(module: Any, *, channels: int = 1, size: int = 8, classes: int = 3, **settings: Any) -> Any:
    torch.manual_seed(0)
    chosen = module.Settings(latent=5, **(SMALL[module] | settings))
    return module.MODEL(chosen, channels=channels, size=size, classes=classes)


@pytest.mark.parametrize("module", [gan, dcgan, conditional_gan])
def test_a_generator_on_the_cpu_draws_for_a_model_on_another_device(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_on = []

    def noted(function: Any) -> Any:
        def draw(*shape: Any, device: Any, **others: Any) -> torch.Tensor:
            drawn_on.append(torch.device(device).type)
            return function(*shape, device=device, **others)

        return draw

    for name in ("randn", "randint"):
        monkeypatch.setattr(torch, name, noted(getattr(torch, name)))
    model = small(module).to("meta")  # the one other device that every machine has
    assert model.latents(4, generator=torch.Generator()).device.type == "meta"
    assert set(drawn_on) == {"cpu"}


def images(n: int, channels: int = 1, size: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("module", SMALL)
@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 28, 10), (3, 4, 0), (3, 33, 2), (1, 9, 1)])
def test_samples_have_the_shape_of_the_data_whatever_its_size_colour_and_labels(
    module: Any, channels: int, size: int, classes: int
) -> None:
    model = small(module, channels=channels, size=size, classes=classes).eval()
    drawn = model.sample(4)
    assert drawn.shape == (4, channels, size, size)
    assert drawn.dtype == torch.uint8
    labels = torch.zeros(4, dtype=torch.long) if classes else torch.full((4,), -1)
    model.train()
    for loss, _ in (model.discriminator_loss(drawn, labels), model.generator_loss(4, labels)):
        assert math.isfinite(loss.item())


@pytest.mark.parametrize("module", SMALL)
def test_the_same_seed_gives_the_same_samples_and_another_seed_others(module: Any) -> None:
    model = small(module).eval()
    first, again, other = (model.sample(3, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("module", SMALL)
def test_each_players_loss_reaches_its_own_weights(module: Any) -> None:
    model = small(module)
    x, labels = images(4), torch.tensor([0, 1, 2, 0])
    model.discriminator_loss(x, labels)[0].backward()
    assert all(p.grad is None for p in model.generator.parameters())
    assert all(p.grad is not None for p in model.discriminator.parameters())
    model.generator_loss(4, labels)[0].backward()
    # a label that is not in the batch has no gradient of its own, but its row is there
    assert all(p.grad is not None for p in model.generator.parameters())


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


def test_no_layer_of_the_conditional_discriminator_stretches_by_more_than_one_after_some_iterations() -> None:
    model = small(conditional_gan, size=8)
    with torch.no_grad():  # far from norm 1 to begin with
        for name, parameter in model.discriminator.named_parameters():
            if "original" in name:
                parameter.mul_(7.0)
    x, labels = images(4), torch.tensor([0, 1, 2, 0])
    for _ in range(60):  # one power iteration each
        model.discriminator_loss(x, labels)
    layers = [m for m in model.discriminator.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding)]
    assert len(layers) == 4
    model.eval()
    for layer in layers:
        assert torch.nn.utils.parametrize.is_parametrized(layer, "weight")
        norm = torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item()
        assert norm == pytest.approx(1.0, abs=0.02)


def test_conditional_batch_norm_has_a_scale_and_a_shift_of_its_own_for_every_label() -> None:
    layer = ConditionalBatchNorm(2, 3)
    with torch.no_grad():
        layer.scale.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
        layer.shift.copy_(torch.tensor([[0.0, 1.0], [-1.0, 0.0], [2.0, 2.0]]))
    h = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    out = layer(h, F.one_hot(labels, 3).float())
    plain = (h - h.mean((0, 2, 3), keepdim=True)) / (h.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
    expected = plain * layer.scale[labels][:, :, None, None] + layer.shift[labels][:, :, None, None]
    assert torch.allclose(out, expected, atol=1e-5)
    out[labels == 1].sum().backward()
    assert layer.shift.grad is not None
    assert (layer.shift.grad[1] != 0).all()
    assert (layer.shift.grad[[0, 2]] == 0).all()


def test_the_logit_of_the_conditional_discriminator_is_a_projection_on_the_label() -> None:
    model = small(conditional_gan).eval()
    d, x = model.discriminator, torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    h = x
    for convolution in d.convolutions:
        h = F.leaky_relu(convolution(h), 0.1)
    features = F.leaky_relu(d.last(h.flatten(1)), 0.1)
    for label in range(3):
        expected = d.out(features)[:, 0] + features @ d.embedding.weight[label]
        assert torch.allclose(d(x, torch.full((5,), label)), expected, atol=1e-5)


def test_a_label_changes_the_image_and_only_the_image_that_it_was_given_to() -> None:
    model = small(conditional_gan).eval()
    a, b = (
        model.sample(4, torch.tensor(labels), torch.Generator().manual_seed(3))
        for labels in ([0, 1, 2, 0], [0, 1, 1, 0])
    )
    assert torch.equal(a[[0, 1, 3]], b[[0, 1, 3]])
    assert not torch.equal(a[2], b[2])


def test_half_of_two_labels_starts_halfway_between_their_images() -> None:
    model = small(conditional_gan).eval()
    z = torch.randn(1, 5).expand(3, -1)
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
    with torch.no_grad():
        first, half, second = model.generator.project(model.generator.joined(z, weights))
    assert torch.allclose(half, (first + second) / 2, atol=1e-6)
    assert not torch.allclose(first, second, atol=1e-2)


def test_the_conditional_discriminator_sees_where_things_are() -> None:
    model = small(conditional_gan, size=16).eval()
    x = images(4, size=16).float() / 127.5 - 1.0
    swapped = torch.cat([x[:, :, 8:], x[:, :, :8]], 2)
    labels = torch.zeros(4, dtype=torch.long)
    with torch.no_grad():
        assert (model.discriminator(x, labels) - model.discriminator(swapped, labels)).abs().min() > 1e-4


def test_the_conditional_gan_says_whether_it_takes_labels() -> None:
    assert ConditionalGAN(conditional_gan.Settings(), channels=1, size=8, classes=4).conditional
    assert not ConditionalGAN(conditional_gan.Settings(), channels=1, size=8, classes=0).conditional


def test_the_features_of_dcgan_are_its_discriminators_activations_on_a_4_by_4_grid() -> None:
    model = small(dcgan, size=28).eval()
    features = model.encode(images(3, size=28))
    assert features.shape == (3, (4 + 8) * 16)
    assert not torch.equal(features[0], features[1])
