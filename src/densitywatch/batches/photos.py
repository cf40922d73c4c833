"""Pictures for the report, closer to their own resolution than what the detector sees.

A picture is decoded a second time, and only if the report may show it. What the detector sees is made in one way for
all detectors, so nothing here can change a score.
"""

from __future__ import annotations

import hashlib
import io
from typing import Any

from PIL import Image

from densitywatch.data.decoding.images import Picture, Resize, decode_picture
from densitywatch.data.encoding import as_pillow
from densitywatch.data.inputs.entries import Entry, SourceUnreachable
from densitywatch.sizes import as_size

SIDE = 512
"""Pixels a side of a picture, at most."""
BYTES = 60_000
"""Bytes of a picture, at most."""
EXACT = 192
"""Pixels a side up to which a picture keeps every pixel."""


def photo_of(data: bytes, seen: Picture, *, channels: int, resize: Resize) -> bytes | None:
    """The picture in the file `data` for the report: PNG or JPEG, at most SIDE pixels a side and BYTES bytes.

    `seen` is the same picture as the detector sees it. The photo shows the same part of it in the same colours: cut to
    the detector's shape, padded to it, or, where `resize` is "stretch", whole and in its own shape. None where it
    cannot be decoded at this size.
    """
    rows, columns = seen.pixels.shape[1:]
    if resize == "stretch":
        height, width = float(seen.height), float(seen.width)
    else:
        # the part of the picture that the detector sees, or the frame that holds all of it, in the detector's shape
        fit = min if resize == "crop" else max
        scale = fit(seen.height / rows, seen.width / columns)
        height, width = rows * scale, columns * scale
    scale = min(1.0, SIDE / max(height, width))
    shape = as_size(max(1, round(height * scale)), max(1, round(width * scale)))
    try:
        image = as_pillow(decode_picture(data, size=shape, channels=channels, resize=resize).pixels)
    except Exception:  # the image has its score; a picture that cannot be drawn must not cost the batch
        return None
    return small_file(image)


def photo_again(entry: Entry, digest: str, seen: Picture, **facts: Any) -> bytes | None:
    """`photo_of` for an entry that is read anew; None where it is not the file any more that had this sha256."""
    try:
        data = entry.read()
    except SourceUnreachable:
        raise
    except Exception:  # see above
        return None
    return photo_of(data, seen, **facts) if hashlib.sha256(data).hexdigest() == digest else None


def small_file(image: Image.Image) -> bytes:
    """A grey or RGB image as a PNG when it is small, or else a JPEG.

    One that would take more than BYTES, such as one of noise, gets a lower quality, and then fewer pixels.
    """
    if max(image.size) <= EXACT:
        exact = io.BytesIO()
        image.save(exact, "PNG")
        if exact.tell() <= BYTES:
            return exact.getvalue()
    while True:
        for quality in (85, 70, 50):
            file = io.BytesIO()
            image.save(file, "JPEG", quality=quality)
            if file.tell() <= BYTES:
                return file.getvalue()
        smaller = (max(1, image.width * 3 // 4), max(1, image.height * 3 // 4))
        image = image.resize(smaller, Image.Resampling.LANCZOS)
