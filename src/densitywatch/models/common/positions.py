"""A learned map of positions, added to the first features of a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from densitywatch.models.common.map_sizes import FULL_MAP


class AxialPositions(nn.Module):
    """A learned map of positions (1, width, size, size) as the sum of one for rows and one for columns."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(1, width, size, 1))
        self.columns = nn.Parameter(torch.zeros(1, width, 1, size))

    def forward(self) -> Tensor:
        return self.rows + self.columns


def positions(width: int, size: int) -> nn.Parameter | AxialPositions:
    """A learned map of positions that starts at zero.

    Beyond 32 pixels a side it is a sum of one for rows and one for columns, so that the parameters grow with the side
    and not with the area.
    """
    return nn.Parameter(torch.zeros(1, width, size, size)) if size <= FULL_MAP else AxialPositions(width, size)


def position_map(found: Tensor | AxialPositions) -> Tensor:
    """The map (1, width, size, size) of what `positions` made."""
    if isinstance(found, AxialPositions):
        summed: Tensor = found()
        return summed
    return found
