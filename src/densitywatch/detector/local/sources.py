"""Where local features come from: filters of our own, or a network that was trained on ImageNet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from densitywatch.arrays import Arrays
from densitywatch.detector.local.filters import filter_maps
from densitywatch.detector.local.lite0 import INSTALL, lite0_maps, read_weights, weights_file
from densitywatch.errors import ModelError

SMALLEST = 64
"""Pixels a side below which an image has too few places for local features."""


@dataclass(frozen=True)
class Source:
    """A source of local features."""

    name: str
    weights: Callable[[], Arrays]
    """What it knows beside the image; kept with the detector, so that a machine that scores needs no package."""
    read: Callable[[Tensor, Arrays], Tensor]
    """uint8 images (B, C, H, W) and the weights -> features (B, D, H / stride, W / stride)."""
    stride: int
    """Pixels from one local feature to the next."""
    dimensions: int
    """Principal components of the features that a density is fitted on."""
    missing: Callable[[], str | None]
    """Why this machine cannot fit it, in one line; None where it can."""
    kept: bool = False
    """Whether the features of a batch are held in memory: several members read them, and they are dear."""
    of_picture: slice | None = None
    """Which of the features its pictures' codes are made of (picture_code.py); None: places are judged without one."""
    in_tiles: Source | None = None
    """What is read of tiles at the picture's own resolution instead; None: the same."""


def _nothing() -> Arrays:
    return {}


def _own(images: Tensor, weights: Arrays) -> Tensor:
    """Filters' features of each place and of its eight neighbours, so that a density knows what goes with what."""
    maps = filter_maps(images)
    b, d, h, w = maps.shape
    return F.unfold(F.pad(maps, (1, 1, 1, 1), mode="replicate"), 3).view(b, 9 * d, h, w)


def _no_lite0() -> str | None:
    return None if weights_file() else f"the weights of EfficientNet-Lite0 are not on this machine; {INSTALL}"


def _lite0_weights() -> Arrays:
    """The weights of EfficientNet-Lite0. Raises ModelError, with what to install, on a machine without them."""
    file = weights_file()
    if file is None:
        raise ModelError(_no_lite0())
    return read_weights(file)


def _lite0(images: Tensor, weights: Arrays) -> Tensor:
    """Features of three depths on the grid of the deepest one: the finer ones are averaged."""
    fine, middle, coarse = lite0_maps(images, weights)
    size = (coarse.shape[2], coarse.shape[3])
    return torch.cat([F.adaptive_avg_pool2d(fine, size), F.adaptive_avg_pool2d(middle, size), coarse], 1)


def _own_alone(images: Tensor, weights: Arrays) -> Tensor:
    """Filters' features of each place without its neighbours.

    In tiles: the leading components of a place with its neighbours are averages over 24 x 24 pixels, in which a scratch
    of 8 pixels drowns.
    """
    return filter_maps(images)


OWN_ALONE = Source("own alone", _nothing, _own_alone, 8, 36, lambda: None)
OWN = Source(
    "own",
    _nothing,
    _own,
    8,
    45,
    lambda: None,
    of_picture=slice(4, None, 9),  # of a place and its neighbours, the place's own features
    in_tiles=OWN_ALONE,
)
LITE0 = Source("lite0", _lite0_weights, _lite0, 16, 176, _no_lite0, kept=True)
