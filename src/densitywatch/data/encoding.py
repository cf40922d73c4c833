"""Images as PNG: the one writer of the project."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from densitywatch.arrays import Pixels


def png(image: Pixels, *, optimize: bool = False) -> bytes:
    """A (C, H, W) uint8 image as the bytes of a PNG file. `optimize` takes longer and gives a smaller file."""
    buffer = io.BytesIO()
    as_pillow(image).save(buffer, "PNG", optimize=optimize)
    return buffer.getvalue()


def as_pillow(image: Pixels) -> Image.Image:
    """A (C, H, W) uint8 image for Pillow: grey with one channel, RGB with three, RGBA with four."""
    return Image.fromarray(np.ascontiguousarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)))
