"""Made-up scenes for the tests: each is a smooth random picture, and its frames differ from it by noise."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from densitywatch.arrays import Pixels

SIZE = 16


def scenes(count: int, frames: int, seed: int = 0, noise: float = 4.0) -> Pixels:
    """Frames (count * frames, 1, 16, 16), one scene after the other."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(count, SIZE, SIZE)), (0, 2, 2))
    pictures = 128 + 60 * smooth / smooth.std()
    every = np.repeat(pictures, frames, axis=0)
    return (every + rng.normal(0, noise, every.shape)).clip(0, 255).astype(np.uint8)[:, None]
