"""Where the coarse levels of a pyramid are more surprised than they expect to be.

Of each difference the model says how surprised it will be on average, and how much that varies. So an image's texture
is taken into account: what counts is the surprise that is left over, summed over a window and divided by what the sum's
spread would be. Under the model each term has mean 0 given what came before (a martingale difference), so the variances
of a window's terms add up.

A level does not see the defect that a coarser one has already shown: it is given the coarse means. So levels are read
one by one, and the largest value counts, not the sum. The detector reads the coarsest level and the coarsest means: the
finer ones see the noise of the camera, and no more of defects (docs/decisions/0048).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from densitywatch.detector.pixel_surprise import surprise_statistics
from densitywatch.errors import ModelError

LEVELS = 1
"""The number of coarsest levels that the detector reads, next to the coarsest means."""
WINDOWS = (32,)
"""Pixels of the image a side."""
PLACE = 8
"""Pixels a side of a place of the maps."""


@dataclass(frozen=True)
class Level:
    """What the model says of one split of a batch of images, or of their coarsest means."""

    scale: tuple[int, int]
    """Pixels of the image that a value covers: rows, columns."""
    surprise: Tensor
    """-log p, colours summed, (B, h, w) nats."""
    expected: Tensor
    variance: Tensor
    """nats^2."""


def pyramid_surprise(model: Any, x: Tensor, levels: int | None = None) -> list[Level]:
    """The `levels` coarsest levels of uint8 images (B, C, H, W), or all: the finest first, the coarsest means last.

    The surprise of all together is -log p of the images. Raises ModelError for a model that is no pyramid.
    """
    if not hasattr(model, "canvas") or not hasattr(model, "surprise"):
        raise ModelError(f"{type(model).__name__} has no levels; take a model of kind pixelcnn_pyramid")
    coarsest, splits = model.surprise(x, levels)
    found = [Level(split.scale, *statistics.unbind(0)) for split, statistics in splits]
    h, w = coarsest.shape[2:]
    statistics = surprise_statistics(model.coarse, model.canvas(coarsest))[:, :, :h, :w]
    return [*found, Level(splits[-1][0].scale if splits else (1, 1), *statistics.unbind(0))]


def windows_of(scale: tuple[int, int], windows: tuple[int, ...] = WINDOWS) -> list[int]:
    """The windows for a level whose values cover `scale` pixels: each holds at least one value."""
    return list(dict.fromkeys(max(window, *scale) for window in windows))


def unusual(level: Level, window: int) -> Tensor:
    """Surprise less its expectation in windows of `window` pixels, in the model's own standard deviations, (B, h, w).

    A window lies around each value. At the border it is what of it lies in the image. One is added to the variance, so
    that a window in which the model is certain of everything divides by 1 and not by 0.
    """
    rows, columns = (max(1, window // scale) for scale in level.scale)
    excess = window_sums(level.surprise - level.expected, rows, columns)
    return excess / (window_sums(level.variance, rows, columns) + 1.0).sqrt()


def window_sums(values: Tensor, rows: int, columns: int) -> Tensor:
    """Sums of maps (B, h, w) over the window of rows x columns around each place, in float64, by integral images."""
    total = F.pad(values.double().cumsum(1).cumsum(2), (1, 0, 1, 0))  # total[i, j]: of all before row i and column j
    top, bottom = _ends(values.shape[1], rows)
    left, right = _ends(values.shape[2], columns)
    strip = total[:, bottom] - total[:, top]
    return strip[:, :, right] - strip[:, :, left]


def _ends(length: int, window: int) -> tuple[Tensor, Tensor]:
    """First and last + 1 of the window around each of `length` places, within 0 .. length."""
    first = torch.arange(length) - window // 2
    return first.clamp(min=0), (first + window).clamp(max=length)


def to_places(values: Tensor, scale: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """The largest value in each place of PLACE pixels, (B, h, w) -> (B, *shape). Scales are powers of two."""
    inside = tuple(max(1, PLACE // side) for side in scale)
    largest = F.max_pool2d(values[:, None], inside, ceil_mode=True)[:, 0]
    over = tuple(max(1, side // PLACE) for side in scale)
    return largest.repeat_interleave(over[0], 1).repeat_interleave(over[1], 2)[:, : shape[0], : shape[1]]


def place_maps(levels: list[Level], size: tuple[int, int], windows: tuple[int, ...] = WINDOWS) -> Tensor:
    """Of every level and window how much too surprised each place is, (B, J, ceil(H / 8), ceil(W / 8))."""
    shape = (-(-size[0] // PLACE), -(-size[1] // PLACE))
    maps = [
        to_places(unusual(level, window), level.scale, shape)
        for level in levels
        for window in windows_of(level.scale, windows)
    ]
    return torch.stack(maps, 1).float()
