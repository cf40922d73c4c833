"""Sizes of feature maps: how often an image is halved, and from which size on maps are factorised."""

from __future__ import annotations

import math

FULL_MAP = 32
"""Up to this many pixels a side a network has weights for every position; beyond, fewer ones."""


def halvings(size: int) -> int:
    """Number of halvings from the image size to a feature map of 4 to 8 pixels a side; 2 or 3 for images below 7.

    There is always one. An odd side is rounded up.
    """
    return max(1, math.ceil(math.log2(size / 8)))
