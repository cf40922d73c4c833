"""Pillow's images of any mode and size as 8-bit grey or RGB; large ones a band of rows at a time.

The range of the pixels must be known, or the picture is refused: it is never made darker or brighter without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from densitywatch.data.decoding.file_headers import Prepared
from densitywatch.errors import DataError

LARGE = 16_000_000
"""Pixels beyond which an image is made smaller before anything else, since a copy of it takes much memory."""
BAND = 1 << 21
"""Pixels of a band of rows."""
DARK = 16383
"""A 16-bit picture with no value above this, a quarter of the range, may have only 10, 12 or 14 bits."""
GAP = 3
"""An image is first made smaller to this many times the wanted size; the better filter does the rest."""

Mode = Literal["L", "RGB"]


def eight_bits(image: Image.Image, mode: Mode, told: Prepared | None = None, *, size: int = 0) -> Image.Image:
    """`image` in 8 bits of `mode`; a large one comes out smaller, its shorter side at least GAP * `size` pixels.

    Raises DataError where the range of the pixels is not known.
    """
    told = told or Prepared(b"")
    opaque = _check(image, told)
    factor = min(image.size) // (GAP * size) if size else 1
    if factor < 2 or image.width * image.height <= LARGE:
        return _as_mode(image, mode, told, opaque)
    small = Image.new(mode, (-(-image.width // factor), -(-image.height // factor)))
    for top, band in _bands(image, factor):
        small.paste(_as_mode(band, mode, told, opaque).reduce(factor), (0, top // factor))
    return small


def _bands(image: Image.Image, step: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """(top row, rows) from top to bottom; a top is a multiple of `step`."""
    rows = max(1, BAND // image.width // step) * step
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        if "transparency" in image.info:
            band.info["transparency"] = image.info["transparency"]
        yield top, band


def _check(image: Image.Image, told: Prepared) -> bool:
    """Whether alpha is to be ignored. Raises DataError where the range of the pixels is not known."""
    if image.mode == "F":
        low, high = _extrema(image)
        if not (low >= 0 and high <= 1):  # NaN fails as well
            raise DataError("floating-point pixels outside 0 to 1 have no agreed range; save it with 8 or 16 bits")
    elif image.mode.startswith("I"):
        low, high = _extrema(image)
        if low < 0 or high > (told.white or 65535):
            raise DataError(f"pixel values outside 0 to {told.white or 65535}; save it with 8 or 16 bits")
        if told.white is None and (told.deep or image.mode == "I") and 0 < high <= DARK and not _scaled(image):
            raise DataError(
                f"pixels of more than 8 bits that never go beyond {high:.0f} of 65535: fewer bits stored in more, or "
                "almost black; save it with 8 bits or over the full range"
            )
    elif told.deep and image.mode in ("RGB", "RGBA", "LA", "CMYK"):
        bands = [band for name, band in zip(image.getbands(), _all_extrema(image), strict=True) if name != "A"]
        if 0 < max(high for _, high in bands) <= DARK >> 8:
            raise DataError(
                "colours of 16 bits that never go beyond a quarter of the range: fewer bits stored in more, or almost "
                "black; save it with 8 bits or over the full range"
            )
    if image.mode not in ("LA", "RGBA") and not (image.mode == "PA" or "transparency" in image.info):
        return False
    return _clear_everywhere(image)


def _clear_everywhere(image: Image.Image) -> bool:
    """Whether alpha is 0 everywhere and there is a picture: a BMP whose fourth byte is not alpha.

    Raises DataError for such a picture in another format.
    """
    seen = False
    for _, band in _bands(image):
        full = band.convert("RGBA")
        *colours, alpha = full.getextrema()
        if alpha[1]:  # type: ignore[index]
            return False
        seen = seen or any(high for _, high in colours)  # type: ignore[misc]
    if seen and image.format != "BMP":
        raise DataError("transparent everywhere, though it holds a picture; save it without its alpha channel")
    return seen


def _extrema(image: Image.Image) -> tuple[float, float]:
    """The least and the greatest value; NaN where there is one, which Pillow's own ignores."""
    bands = [np.asarray(band) for _, band in _bands(image)]
    return float(np.min([band.min() for band in bands])), float(np.max([band.max() for band in bands]))


def _all_extrema(image: Image.Image) -> list[tuple[float, float]]:
    found = image.getextrema()
    return list(found) if isinstance(found[0], tuple) else [found]


def _scaled(image: Image.Image) -> bool:
    """Whether the values use the full range: each is an 8-bit value times 257, or the last four bits of each are 0."""
    return all(_multiples(np.asarray(band)) for _, band in _bands(image))


def _multiples(values: npt.NDArray[np.integer]) -> bool:
    return not (values % 257).any() or not (values & 15).any()


def _as_mode(image: Image.Image, mode: Mode, told: Prepared, opaque: bool) -> Image.Image:
    if image.mode == "F":
        values = np.asarray(image)
        return _grey(np.round((1 - values if told.inverted else values) * 255), mode)
    if image.mode.startswith("I"):
        white = told.white or 65535
        whole = np.asarray(image).astype(np.int32)
        whole = white - whole if told.inverted else whole
        return _grey((whole * 255 + white // 2) // white, mode)
    if image.mode == mode and "transparency" not in image.info:
        return image
    if opaque:
        image = image.convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    if image.mode not in ("1", "L", "RGB", "RGBA"):
        image = image.convert("RGB")
    return image.convert(mode)


def _grey(values: npt.NDArray[np.generic], mode: Mode) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert(mode)
