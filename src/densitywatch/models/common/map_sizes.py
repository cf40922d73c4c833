"""Sizes of feature maps: how often an image is halved, and from which size on maps are factorised."""

from __future__ import annotations

import math

FULL_MAP = 32
"""Up to this many pixels a side a network has weights for every position; beyond, fewer ones."""


def halvings(size: int) -> int:
    """Number of halvings from the image size to a feature map of 4 to 8 pixels a side."""
    return max(1, math.ceil(math.log2(size / 8)))
