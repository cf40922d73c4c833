"""The lossless split of pixelcnn_pyramid: an image as coarser means and the differences that they hide, integers all.

A pair of neighbours (a, b) becomes its rounded mean m and its difference d = a - b (the S-transform, Said and Pearlman
1996). Columns are split first, then rows: that halves both sides. Columns round down and rows up, so that means do not
drift over the levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

GROUPS = ((0, 0), (1, 1), (0, 1), (1, 0))
"""Row and column, in squares of 2 x 2 places, of the groups of differences in their order."""
LARGEST = 255
"""A difference lies in -LARGEST .. LARGEST."""


@dataclass(frozen=True)
class Split:
    """The split of rows (dim 2) or columns (dim 3) of an image `length` long in that direction, at a level."""

    level: int
    dim: Literal[2, 3]
    length: int

    @property
    def up(self) -> int:
        """Whether the mean is rounded up: 1 for rows, 0 for columns."""
        return int(self.dim == 2)

    @property
    def scale(self) -> tuple[int, int]:
        """Pixels of the image a mean covers: rows, columns."""
        return (2 << self.level if self.dim == 2 else 1 << self.level), 2 << self.level

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and differences of an integer image, half as long in this direction, rounded up."""
        a, b = self._every(x, 0), self._every(x, 1)
        if self.length % 2:
            b = torch.cat([b, a.narrow(self.dim, a.shape[self.dim] - 1, 1)], self.dim)
        return (a + b + self.up) >> 1, a - b

    def join(self, means: Tensor, differences: Tensor) -> Tensor:
        """The image that `parts` took apart."""
        # a + b = 2 m + (d mod 2) rounded down, 2 m - (d mod 2) rounded up; a is half of that plus d
        a = means + ((differences + 1 - self.up) >> 1)
        pairs = torch.stack([a, a - differences], self.dim + 1)
        return pairs.flatten(self.dim, self.dim + 1).narrow(self.dim, 0, self.length)

    def reach(self, means: Tensor) -> Tensor:
        """The largest difference of each pair with this mean: its difference can be all of -reach .. reach.

        Both of the pair lie in 0..255, so |d| is at most twice the distance of m to the nearer end of the range, and
        one more at the end that it was rounded to. Nothing is left for an odd last one, which is no pair.
        """
        found = torch.minimum(2 * means + 1 - self.up, 2 * (LARGEST - means) + self.up)
        if self.length % 2:
            found.narrow(self.dim, found.shape[self.dim] - 1, 1).zero_()
        return found

    def _every(self, x: Tensor, first: int) -> Tensor:
        return x[:, :, first::2] if self.dim == 2 else x[..., first::2]


def plan(height: int, width: int, coarsest: int) -> list[Split]:
    """The splits of an image, the finest first, until both sides have at most `coarsest` pixels."""
    splits = []
    level = 0
    while max(height, width) > coarsest:
        splits += [Split(level, 3, width), Split(level, 2, height)]
        height, width, level = (height + 1) // 2, (width + 1) // 2, level + 1
    return splits


def take_apart(x: Tensor, splits: list[Split]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The coarsest means of an image, and the means and differences of each split."""
    image, parts = x.to(torch.int32), []
    for split in splits:
        means, differences = split.parts(image)
        parts.append((means, differences))
        image = means
    return image, parts


def grouped(x: Tensor) -> Tensor:
    """(B, C, h, w) as the four groups: (B, 4, C, h / 2, w / 2), rounded up; zeros at an odd end."""
    x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    return torch.stack([x[:, :, i::2, j::2] for i, j in GROUPS], 1)


def ungrouped(groups: Tensor, height: int, width: int) -> Tensor:
    """Back from `grouped`."""
    b, _, c, h, w = groups.shape
    x = groups.new_empty(b, c, 2 * h, 2 * w)
    for g, (i, j) in enumerate(GROUPS):
        x[:, :, i::2, j::2] = groups[:, g]
    return x[:, :, :height, :width]


def spread(nats: Tensor, split: Split) -> Tensor:
    """A map of a split's means as one of what it took apart: each pair gets a half each, an odd last one all."""
    halves = torch.stack([nats, nats], split.dim).flatten(split.dim - 1, split.dim) / 2.0
    if split.length % 2:
        last = nats.narrow(split.dim - 1, nats.shape[split.dim - 1] - 1, 1)
        halves = torch.cat([halves.narrow(split.dim - 1, 0, split.length - 1), last], split.dim - 1)
    return halves
