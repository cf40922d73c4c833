"""Short names for the types of NumPy arrays that functions take and return."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""uint8 images in memory, (B, C, H, W); `data.reading.Images` are images in memory or on disk."""
Floats = NDArray[np.floating[Any]]
"""Real numbers of 32 or 64 bits."""
Numbers = NDArray[np.int64]
"""Whole numbers: labels, rows, places."""
Arrays = dict[str, NDArray[Any]]
"""Arrays by name: what a safetensors file holds."""
