"""Images as PNG, the one writer of the project, and pictures for pages."""

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


PICTURE_BYTES = 60_000
"""Bytes of a picture for a page, at most."""
EXACT = 192
"""Pixels a side up to which a picture for a page keeps every pixel."""


def for_page(image: Image.Image, most: int) -> bytes:
    """A grey or RGB picture for a page: PNG up to EXACT pixels a side, or else JPEG of at most `most` pixels a side.

    It has PICTURE_BYTES at most. A picture that would take more, such as one of noise, gets a lower quality, and then
    fewer pixels. The same picture gives the same bytes.
    """
    if max(image.size) <= EXACT:
        exact = io.BytesIO()
        image.save(exact, "PNG")
        if exact.tell() <= PICTURE_BYTES:
            return exact.getvalue()
    image = image.copy()
    while True:
        image.thumbnail((most, most), Image.Resampling.LANCZOS, reducing_gap=3.0)
        for quality in (85, 70, 50):
            file = io.BytesIO()
            image.save(file, "JPEG", quality=quality)
            if file.tell() <= PICTURE_BYTES:
                return file.getvalue()
        most = max(image.size) * 3 // 4
