"""Where a pyramid is more or less surprised than it expects, at each of its levels and in windows of several sizes.

Of each difference the model says how surprised it will be on average, and how much that varies. So an image's texture
is taken into account: what counts is the surprise that is left over, summed over a window and divided by what the sum's
spread would be. Under the model each term has mean 0 given what came before (a martingale difference), so the variances
of a window's terms add up.

A level does not see the defect that a coarser one has already shown: it is given the coarse means. So levels are read
one by one, and the largest value counts, not the sum. The detector reads the finest level alone, in windows of 8
pixels: more levels and windows found no more (docs/decisions/0048).
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
"""The finest levels that the detector reads."""
WINDOWS = (8,)
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


def pyramid_surprise(model: Any, x: Tensor, levels: int | None = None) -> tuple[list[Level], Tensor]:
    """The `levels` finest levels of uint8 images (B, C, H, W), the finest first, and -log p of the images, (B,) nats.

    With None: all levels, and the coarsest means as the last one. Raises ModelError for a model that is no pyramid, and
    for one that takes the images as they are.
    """
    if not hasattr(model, "canvas") or not hasattr(model, "surprise"):
        raise ModelError(f"{type(model).__name__} has no levels; take a model of kind pixelcnn_pyramid")
    coarsest, splits = model.surprise(x, levels)
    if not splits and levels is not None:
        raise ModelError(f"the pyramid has no levels for images of {x.shape[2]} x {x.shape[3]}; train a larger one")
    nats = -model.coarse_log_prob(coarsest).double().sum((1, 2))
    for _, statistics in splits:
        nats = nats + statistics[0].double().sum((1, 2))
    found = [Level(split.scale, *statistics.unbind(0)) for split, statistics in splits if len(statistics) == 3]
    if levels is None:
        h, w = coarsest.shape[2:]
        statistics = surprise_statistics(model.coarse, model.canvas(coarsest))[:, :, :h, :w]
        found.append(Level(splits[-1][0].scale if splits else (1, 1), *statistics.unbind(0)))
    return found, nats


def windows_of(scale: tuple[int, int], windows: tuple[int, ...] = WINDOWS) -> list[int]:
    """The windows that hold at least one value of a level whose values cover `scale` pixels."""
    return [window for window in windows if window >= max(scale)]


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
    """Of every level and window how much too surprised, and too little, each place is, (B, 2 J, ceil(H / 8), ...)."""
    shape = (-(-size[0] // PLACE), -(-size[1] // PLACE))
    maps = []
    for level in levels:
        for window in windows_of(level.scale, windows):
            z = unusual(level, window)
            maps += [to_places(sign, level.scale, shape) for sign in (z, -z)]
    return torch.stack(maps, 1).float()
