"""Bytes that nobody vouches for -> uint8 (C, H, W) arrays of one size, or a DataError with a short reason.

What is decided here, and shown to users in data/README.md:

* PNG, JPEG, WebP, BMP, GIF, TIFF and PPM are read; nothing else, whatever the file is called.
* Alpha is composited over black, the value of "nothing" in the built-in dataset.
* 16-bit grey is divided by 257 (65535 becomes 255); floating-point pixels have no agreed range and are refused.
* EXIF rotation is applied. An animation or a multi-page file is refused: one row cannot speak for several pictures.
  The previews that phones append to a JPEG (MPO) do not count as pages.
* More than 50 million pixels are refused from the header, before anything is decoded.
"""

from __future__ import annotations

import io
import warnings
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from densitywatch.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 50_000_000
MAX_BYTES = 64 << 20
"""A file larger than this is not read at all."""

Resize = Literal["crop", "pad", "stretch"]


class Picture(NamedTuple):
    """One image brought to the dataset's shape, and what it was before."""

    pixels: npt.NDArray[np.uint8]
    """(C, size, size)."""
    width: int
    height: int
    mode: str
    """Pillow's name of the original's pixel format: L, RGB, RGBA, P, CMYK, I;16, ..."""


def decode_image(data: bytes, *, size: int, channels: int, resize: Resize) -> npt.NDArray[np.uint8]:
    """The image in `data` as uint8 (channels, size, size); raises DataError with the reason when it is none."""
    return decode_picture(data, size=size, channels=channels, resize=resize).pixels


def decode_picture(data: bytes, *, size: int, channels: int, resize: Resize) -> Picture:
    """Like `decode_image`, with the original's width, height (as seen, after EXIF rotation) and mode."""
    if not data:
        raise DataError("the file is empty")
    if len(data) > MAX_BYTES:
        raise DataError(f"the file is larger than {MAX_BYTES >> 20} MiB")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # a bad EXIF tag is no reason to print or to stop
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
        try:
            return _decode(data, size, channels, resize)
        except DataError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise DataError(f"more than {MAX_PIXELS:,} pixels") from None
        except UnidentifiedImageError:
            if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
                raise DataError("text such as HTML or SVG, not an image") from None
            raise DataError(f"not an image in a known format ({', '.join(FORMATS)})") from None
        except Exception as error:  # Pillow's decoders raise a dozen kinds of exception on broken bytes
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise DataError(f"broken or cut short: {reason}") from None


def _decode(data: bytes, size: int, channels: int, resize: Resize) -> Picture:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise DataError(f"{width} x {height} pixels are more than {MAX_PIXELS:,}")
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise DataError("an animation or a file of several pages; save each picture as a file of its own")
        if image.format == "PNG":  # loading leaves checksums alone, so flipped bits would pass for pixels
            with Image.open(io.BytesIO(data), formats=("PNG",)) as copy:
                copy.verify()
        mode = image.mode
        image.draft(None, (3 * size, 3 * size))  # a JPEG is decoded at a fraction of its size where that is enough
        image.load()
        upright = ImageOps.exif_transpose(image)
        if (upright.width < upright.height) != (image.width < image.height):
            width, height = height, width
        return Picture(fit_image(upright, size=size, channels=channels, resize=resize), width, height, mode)


def fit_image(image: Image.Image, *, size: int, channels: int, resize: Resize) -> npt.NDArray[np.uint8]:
    """`image` as uint8 (channels, size, size): colours converted first, then cut, padded with black or stretched.

    An image that already has the size keeps its pixel values as they are.
    """
    image = _eight_bits(image, "L" if channels == 1 else "RGB")
    width, height = image.size
    if (width, height) != (size, size):
        if resize == "crop":
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            image = _scaled(image, size, size, (left, top, left + side, top + side))
        elif resize == "stretch":
            image = _scaled(image, size, size, (0, 0, width, height))
        else:
            scale = size / max(width, height)
            inner = _scaled(image, max(1, round(width * scale)), max(1, round(height * scale)), (0, 0, width, height))
            image = Image.new(image.mode, (size, size))
            image.paste(inner, ((size - inner.width) // 2, (size - inner.height) // 2))
    array = np.asarray(image, dtype=np.uint8)
    return np.ascontiguousarray(array[None] if channels == 1 else array.transpose(2, 0, 1))


def _scaled(image: Image.Image, width: int, height: int, box: tuple[float, float, float, float]) -> Image.Image:
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def _eight_bits(image: Image.Image, mode: Literal["L", "RGB"]) -> Image.Image:
    """Any of Pillow's modes as 8-bit grey or RGB."""
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise DataError("floating-point pixels have no agreed range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError("pixel values outside 0 to 65535; save it with 8 or 16 bits")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert(mode)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    if image.mode not in ("1", "L", "RGB", "RGBA"):
        image = image.convert("RGB")
    return image.convert(mode)
