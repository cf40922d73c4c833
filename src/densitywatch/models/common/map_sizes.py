"""Sizes of feature maps: how often an image is halved, and from which size on maps are factorised."""

from __future__ import annotations

import math

FULL_MAP = 32
"""Up to this many pixels a side every position has its own numbers; larger maps are sums over rows and columns."""


def halvings(size: int) -> int:
    """How many factors of two lie between an image's size and the about 4 to 8 pixels of a network's smallest map."""
    return max(1, math.ceil(math.log2(size / 8)))
