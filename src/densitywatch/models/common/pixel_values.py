"""The values of pixels: 0..255 to and from [-1, 1], and bits per dimension."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG_2 = math.log(2.0)


def scale_images(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 images to floats in [-1, 1]."""
    return x.to(dtype) / 127.5 - 1.0


def unscale_images(x: Tensor) -> Tensor:
    """Floats in [-1, 1] to uint8 images; what lies outside is clipped."""
    return ((x.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)


def bits_per_dim(log_prob: Tensor, dimensions: int) -> Tensor:
    """Nats per image to bits per sub-pixel; `dimensions` is C * H * W."""
    return -log_prob / (LOG_2 * dimensions)
