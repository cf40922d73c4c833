"""Local features that nothing was trained for: shades, and energies of oriented filters at four scales.

A pyramid of images, each half as large as the one before. On each level complex Gabor filters in six directions; the
modulus is how much of an edge or texture of that direction and scale there is, wherever its phase. These are the first
coefficients of a wavelet scattering transform (Bruna & Mallat 2013), in logarithms, which makes them near Gaussian.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

SCALES, DIRECTIONS, SIDE = 4, 6, 7
"""Levels of the pyramid, directions of the filters, pixels a side of a filter."""
FREQUENCY, WIDTH, SLANT = 0.5625 * math.pi, 1.1, 0.6
"""Radians a pixel, standard deviation of the envelope along the wave, and that over the one across it."""
SMALL = 1e-3
"""Added before the logarithm: a quarter of one grey level of 256, so that noise below it hardly counts."""


def filter_maps(images: Tensor) -> Tensor:
    """Features of uint8 images (B, C, H, W) at stride 8: (B, D, ceil(H / 8), ceil(W / 8)).

    Four shades (of the quarters of the 8 x 8 pixels) and 24 energies; of RGB images also two colour differences and
    their energies at the three coarser scales, without direction.
    """
    x = images.float() / 255.0
    h, w = x.shape[2:]
    x = F.pad(x, (0, -w % 8, 0, -h % 8), mode="replicate")
    luminance = x.mean(1, keepdim=True)
    levels = _pyramid(luminance)
    parts = [F.pixel_unshuffle(levels[2], 2)]
    parts += [
        _log(_to_stride_8(_energies(level).flatten(1, 2), number)) for number, level in enumerate(levels[:SCALES])
    ]
    if images.shape[1] == 3:
        # colour at half the size and below: photographs hold no more of it, and it is the slowest part
        red, green, blue = _halved(x).unbind(1)
        levels = _pyramid(torch.stack([red - green, (red + green) / 2 - blue], 1))[:3]
        parts.append(levels[2])
        parts += [_log(_to_stride_8(_energies(level).mean(2), number + 1)) for number, level in enumerate(levels)]
    return torch.cat(parts, 1)


@cache
def _filters() -> Tensor:
    """Real and imaginary parts of the filters, (2 * DIRECTIONS, 1, SIDE, SIDE); a flat image gives 0."""
    steps = torch.arange(SIDE, dtype=torch.float32) - SIDE // 2
    down, across = torch.meshgrid(steps, steps, indexing="ij")
    kernels = []
    for k in range(DIRECTIONS):
        angle = math.pi * k / DIRECTIONS
        along = across * math.cos(angle) + down * math.sin(angle)
        aside = down * math.cos(angle) - across * math.sin(angle)
        envelope = torch.exp(-(along.square() + SLANT**2 * aside.square()) / (2 * WIDTH**2))
        envelope = envelope / envelope.sum()
        cosine = envelope * torch.cos(FREQUENCY * along)
        kernels += [cosine - envelope * cosine.sum(), envelope * torch.sin(FREQUENCY * along)]
    return torch.stack(kernels)[:, None]


def _energies(x: Tensor) -> Tensor:
    """Modulus of each complex filter's response, (B, C, H, W) -> (B, C, DIRECTIONS, H, W)."""
    b, c, h, w = x.shape
    planes = F.pad(x.reshape(b * c, 1, h, w), (SIDE // 2,) * 4, mode="replicate")
    parts = F.conv2d(planes, _filters()).view(b, c, DIRECTIONS, 2, h, w)
    return (parts.square().sum(3) + 1e-10).sqrt()


def _pyramid(x: Tensor) -> list[Tensor]:
    """The image and three halvings of it."""
    levels = [x]
    for _ in range(3):
        levels.append(_halved(levels[-1]))
    return levels


def _halved(x: Tensor) -> Tensor:
    """Half the size, after the binomial filter (1, 3, 3, 1) / 8 in both directions."""
    weights = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8.0
    kernel = (weights[:, None] * weights).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, stride=2, groups=x.shape[1])


def _to_stride_8(x: Tensor, level: int) -> Tensor:
    """Maps of a level of the pyramid, halved until they are at stride 8."""
    for _ in range(3 - level):
        x = _halved(x)
    return x


def _log(x: Tensor) -> Tensor:
    return torch.log(x + SMALL)
