"""Pictures of any shape, read in overlapping tiles at their own resolution.

A source of local features reads a tile at a time, so its memory does not grow with the picture. Every place of the
picture takes its features from the tile in which it lies furthest from an edge, so nothing is cut in two: a defect on
the border between two tiles is seen whole by both. All that follows is of the whole picture: the mean that is taken
away, the map, and its largest value, which is the maximum over tiles. Calibration images are read by the same rule.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

OVERLAP = 0.25
"""The share of a tile's side that its neighbour covers as well, at least."""


def starts(length: int, tile: int) -> list[int]:
    """First places of the fewest tiles of `tile` places that cover `length` places and overlap by OVERLAP or more.

    They are spread evenly; the last one ends at the end. A shorter length has one tile.
    """
    if length <= tile:
        return [0]
    step = max(1, int(tile * (1.0 - OVERLAP)))
    last = length - tile
    count = -(-last // step) + 1
    return [round(last * i / (count - 1)) for i in range(count)]


def owned(length: int, tile: int) -> list[tuple[int, int, int]]:
    """(first place of the tile, first and last + 1 of the places that it gives) for each of `starts`.

    Two neighbours share what both cover in the middle. Together the tiles give each place once.
    """
    first = starts(length, tile)
    borders = [0, *((a + tile + b) // 2 for a, b in pairwise(first)), length]
    return [(start, *ends) for start, ends in zip(first, pairwise(borders), strict=True)]


def read_in_tiles(images: Tensor, side: int, stride: int, read: Callable[[Tensor], Tensor]) -> Tensor:
    """Features (B, D, ceil(H / stride), ceil(W / stride)) of uint8 images (B, C, H, W), from tiles of `side` pixels.

    `read` gives features (B, D, h / stride, w / stride) of images whose sides are multiples of `stride`. Sides that are
    none are filled up with the last row or column.
    """
    height, width = images.shape[2:]
    filled = F.pad(images.float(), (0, -width % stride, 0, -height % stride), mode="replicate").to(images.dtype)
    rows, columns = (length // stride for length in filled.shape[2:])
    tile = max(1, side // stride)
    down = []
    for top, first, last in owned(rows, tile):
        across = []
        for left, begin, end in owned(columns, tile):
            part = filled[..., top * stride : (top + tile) * stride, left * stride : (left + tile) * stride]
            across.append(read(part)[:, :, first - top : last - top, begin - left : end - left])
        down.append(torch.cat(across, 3))
    return torch.cat(down, 2)
