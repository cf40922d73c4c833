"""Grids of images, heat maps as PNG, and maps and outlines that lie over a picture."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from densitywatch.data.encoding import png
from densitywatch.data.reading import resized
from densitywatch.sizes import as_size

GAP = 2
WIDTH = 1024
"""Width in pixels of a grid of large pictures."""
DENSEST = 0.6
"""How much of the picture a map over it hides at most."""
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
        scale = largest / max(images.shape[2:])
        images = resized(images, as_size(*(max(1, round(side * scale)) for side in images.shape[2:])))
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


def own_top(values: np.ndarray) -> float:
    """Where a map of values from 0 on is brightest on a scale of its own: all but its 1 in 200 largest lie below."""
    return float(np.quantile(values, 0.995)) or float(values.max()) or 1.0


def as_rgb(images: np.ndarray) -> np.ndarray:
    """Grey or colour images (n, C, H, W) with three channels."""
    return np.broadcast_to(images, (len(images), 3, *images.shape[2:]))


def map_over(strength: np.ndarray) -> bytes:
    """A map (h, w) of values from 0 to 1 as a PNG to lie over its picture, a pixel for each place.

    0 is clear, so that the picture shows as it is. 1 is the brightest and hides the most, DENSEST. What is not finite
    is clear.
    """
    values = np.nan_to_num(np.asarray(strength, np.float64), nan=0.0, posinf=0.0, neginf=0.0).clip(0.0, 1.0)
    # half of the way up is an orange that stands out on dark and on light pictures
    colour = heat(0.4 + 0.6 * values[None], 1.0)[0]
    alpha = (255 * DENSEST * values).round().astype(np.uint8)
    return png(np.concatenate([np.where(alpha > 0, colour, np.uint8(0)), alpha[None]]), optimize=True)


def outline(mask: np.ndarray) -> str:
    """The borders of the marked places of a mask (h, w) as an SVG path in a box of w x h; "" where none is marked.

    Stretched over a picture, the path goes round the areas. The edge of the picture counts as a border.
    """
    framed = np.pad(np.asarray(mask, dtype=bool), 1)
    across = framed[1:, 1:-1] != framed[:-1, 1:-1]  # (h + 1, w): a border between a place and the one above it
    down = framed[1:-1, 1:] != framed[1:-1, :-1]  # (h, w + 1): between a place and the one to its left
    lines = [f"M{start} {y}h{length}" for y, start, length in _runs(across)]
    return "".join(lines + [f"M{x} {start}v{length}" for x, start, length in _runs(down.T)])


def _runs(borders: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(row, start, length) of each run of True."""
    for number, row in enumerate(borders):
        ends = np.flatnonzero(np.diff(row.astype(np.int8), prepend=0, append=0))
        for start, end in zip(ends[::2], ends[1::2], strict=True):
            yield number, int(start), int(end - start)
