"""The conditional GAN: what the papers ask of its layers, tested as maths."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from densitywatch.models import conditional_gan
from densitywatch.models.conditional_gan import ConditionalBatchNorm, ConditionalGAN
from tests.models.small_gans import images, small


def test_each_weight_of_the_conditional_discriminator_as_a_matrix_has_norm_one_after_some_iterations() -> None:
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


def test_conditional_batch_norm_has_a_scale_and_a_shift_for_every_label() -> None:
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
