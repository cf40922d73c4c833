"""The values of pixels: scaled and back, and bits per dimension."""

from __future__ import annotations

import math

import pytest
import torch

from densitywatch.models.common.pixel_values import bits_per_dim, scale_images, unscale_images


def test_scaling_to_floats_and_back_keeps_every_value() -> None:
    x = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(unscale_images(scale_images(x)), x)


def test_bits_per_dim_of_a_uniform_image_is_eight() -> None:
    log_prob = torch.tensor([-math.log(256.0) * 3 * 16])
    assert bits_per_dim(log_prob, 3 * 16).item() == pytest.approx(8.0)
