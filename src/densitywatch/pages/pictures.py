"""Grids of images and heat maps as PNG."""

from __future__ import annotations

import numpy as np

from densitywatch.data.encoding import png
from densitywatch.data.reading import resized

GAP = 2
WIDTH = 1024
"""Width in pixels of a grid of large pictures."""
# from black over violet and orange to pale yellow; lightness rises all the way, so it is readable in grey too
HEAT = np.array(
    [
        (0, 0, 4),
        (40, 11, 84),
        (101, 21, 110),
        (159, 42, 99),
        (212, 72, 66),
        (245, 125, 21),
        (250, 193, 39),
        (252, 255, 164),
    ]
)


def grid(images: np.ndarray, columns: int, *, cell: int = 56, width: int | None = WIDTH) -> bytes:
    """Images (n, C, H, W) uint8, row by row, as a PNG with transparent gaps.

    Small images are enlarged to about `cell` pixels a side. Large ones are scaled down until the grid is about `width`
    pixels wide, unless `width` is None.
    """
    if width is not None and max(images.shape[2:]) > (largest := max(cell, width // max(1, min(columns, len(images))))):
        images = resized(images, largest)
    n, _, height, across = images.shape
    columns = max(1, min(columns, n))
    rows = -(-n // columns)
    factor = max(1, round(cell / max(height, across)))
    height, across = height * factor, across * factor
    sheet = np.zeros((rows * (height + GAP) - GAP, columns * (across + GAP) - GAP, 4), np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + GAP), i % columns * (across + GAP)
        enlarged = np.broadcast_to(image, (3, *image.shape[1:])).repeat(factor, 1).repeat(factor, 2)
        sheet[top : top + height, left : left + across, :3] = enlarged.transpose(1, 2, 0)
        sheet[top : top + height, left : left + across, 3] = 255
    return png(sheet.transpose(2, 0, 1), optimize=True)


def heat(maps: np.ndarray, top: float) -> np.ndarray:
    """Maps (n, H, W) as colour images (n, 3, H, W) uint8: 0 and less is black, `top` and more is the brightest."""
    position = np.clip(maps / top if top > 0 else np.zeros_like(maps), 0, 1) * (len(HEAT) - 1)
    channels = [np.interp(position, np.arange(len(HEAT)), HEAT[:, c]) for c in range(3)]
    return np.stack(channels, 1).round().astype(np.uint8)


def as_rgb(images: np.ndarray) -> np.ndarray:
    """Grey or colour images (n, C, H, W) with three channels."""
    return np.broadcast_to(images, (len(images), 3, *images.shape[2:]))
