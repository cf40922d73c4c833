"""Untrusted bytes to uint8 (C, H, W) arrays of one size, or a DataError with a short reason.

What is decided here; data/README.md tells users the same:

* PNG, JPEG, WebP, BMP, GIF, TIFF, PPM, JPEG 2000, AVIF and HEIC are read; nothing else, whatever the file is called.
* Alpha is composited over black, which is the background of the built-in dataset.
* 16 bits are divided by 257 (65535 becomes 255), floats from 0 to 1 multiplied by 255; a picture whose range is not
  known, such as 12 bits stored in 16, is refused.
* EXIF rotation is applied. An animation or a multi-page file is refused: a file is one picture. The previews that
  phones append to a JPEG (MPO) do not count as pages.
* More than 150 million pixels are refused from the header, before anything is decoded.
* Decoding happens in a child process (sandbox.py) with limits on CPU time and memory that grow with the pixels.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from densitywatch.data.decoding.bit_depth import GAP, eight_bits
from densitywatch.data.decoding.file_headers import Prepared, prepared, what_it_is
from densitywatch.data.decoding.sandbox import MEMORY, SECONDS, Answer, ReaderDied, Request, allow, answers
from densitywatch.errors import DataError
from densitywatch.sizes import Size, height_width, read_size
from densitywatch.text import one_line

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")
EXACT = ("PNG", "BMP", "GIF", "TIFF", "PPM")
"""Those that keep every pixel."""
MAX_PIXELS = 150_000_000
MAX_BYTES = 64 << 20
"""Files with more bytes than this are not read."""
PIXELS_A_SECOND = 10_000_000
BYTES_A_PIXEL = 8
TOGETHER = 64
TOGETHER_BYTES = 16 << 20
"""Most files of one request to the child process, and most bytes of these."""

Resize = Literal["crop", "pad", "stretch"]


class Picture(NamedTuple):
    """One image in the dataset's shape, and what the original was."""

    pixels: npt.NDArray[np.uint8]
    """(C, H, W)."""
    width: int
    height: int
    mode: str
    """Pillow's name of the original's pixel format: L, RGB, RGBA, P, CMYK, I;16, ..."""
    taken: str = ""
    """When it was taken, as EXIF writes it: YYYY:MM:DD HH:MM:SS. Empty where the file does not say."""


def decode_image(data: bytes, *, size: Size, channels: int, resize: Resize) -> npt.NDArray[np.uint8]:
    """The image in `data` as uint8 (channels, height, width). Raises DataError with the reason where there is none."""
    return decode_picture(data, size=size, channels=channels, resize=resize).pixels


def decode_picture(data: bytes, *, size: Size, channels: int, resize: Resize, max_pixels: int = MAX_PIXELS) -> Picture:
    """Like `decode_image`, with the original's width and height (after EXIF rotation) and mode."""
    found = decode_images([data], size=size, channels=channels, resize=resize, max_pixels=max_pixels)[0]
    if isinstance(found, DataError):
        raise found
    return found


def decode_marks(data: bytes, *, size: Size, resize: Resize) -> Picture:
    """A mask: `pixels` (1, height, width) are 255 where any marked pixel of the file lies, and 0 elsewhere.

    It is cut and scaled as a picture of its shape is. Marked is what is not black, and of a file whose compression
    loses something, such as a JPEG, what is brighter than half of its brightest pixel. Raises DataError with the reason
    where the file is no picture.
    """
    found = _decoded([data], {"size": size, "channels": 1, "resize": resize, "max_pixels": MAX_PIXELS, "marks": True})[
        0
    ]
    if isinstance(found, DataError):
        raise found
    return found


_turns = threading.BoundedSemaphore(min(4, os.cpu_count() or 1))


def decode_images(
    files: Sequence[bytes], *, size: Size, channels: int, resize: Resize, max_pixels: int = MAX_PIXELS
) -> list[Picture | DataError]:
    """For each of `files` a picture or the reason for none; many at once are much faster than one by one."""
    return _decoded(files, {"size": size, "channels": channels, "resize": resize, "max_pixels": max_pixels})


def _decoded(files: Sequence[bytes], facts: dict[str, Any]) -> list[Picture | DataError]:
    """What the child makes of `files` under the facts of a request."""
    shape = (facts["channels"], *height_width(facts["size"]))
    found: list[Picture | DataError] = []
    one_by_one_until = 0
    while len(found) < len(files):
        start = len(found)
        count = 1 if start < one_by_one_until else _together(files[start : start + TOGETHER])
        # a file that is too large is not sent: its length alone decides
        batch = [data if len(data) <= MAX_BYTES else b"too large" for data in files[start : start + count]]
        try:
            with _turns:
                read = answers("densitywatch.data.decoding.images:decode_each", facts, blobs=batch, together=count > 1)
                # `read` comes first in the zip, so it is asked to its end, which keeps its child for the next request
                for answer, data in zip(read, files[start:], strict=False):
                    found.append(_picture(answer, data, shape))
        except ReaderDied as error:
            if count > 1:  # one of several files is at fault: the rest one by one, until it is found
                one_by_one_until = start + count
                continue
            found.append(DataError(str(error)))
            one_by_one_until = 0
    return found


def _together(files: Sequence[bytes]) -> int:
    """Number of `files` that go into one request: at least one."""
    held = 0
    for count, data in enumerate(files):
        held += len(data)
        if count and held > TOGETHER_BYTES:
            return count
    return len(files)


def _picture(answer: Answer, data: bytes, shape: tuple[int, int, int]) -> Picture | DataError:
    if len(data) > MAX_BYTES:
        return DataError(f"the file is larger than {MAX_BYTES >> 20} MiB")
    facts = answer.facts
    if "reason" in facts:
        return DataError(str(facts["reason"]))
    pixels = np.frombuffer(answer.data, dtype=np.uint8).reshape(shape).copy()
    return Picture(pixels, int(facts["width"]), int(facts["height"]), str(facts["mode"]), str(facts["taken"]))


def decode_each(request: Request) -> Iterator[Answer]:
    """The reader in the child: one answer for each blob."""
    facts = request.facts
    Image.MAX_IMAGE_PIXELS = None  # the limit is MAX_PIXELS
    with contextlib.suppress(ImportError):
        import pi_heif

        pi_heif.options.DECODE_THREADS = 1
        pi_heif.register_heif_opener()
    for data in request.blobs:
        try:
            seen = _read(data, facts)
        except DataError as error:
            yield Answer({"reason": str(error)})
        except MemoryError:
            yield Answer(
                {"reason": "decoding it takes more memory than its size explains; save it again or leave it out"}
            )
        else:
            told = {"width": seen.width, "height": seen.height, "mode": seen.mode, "taken": seen.taken}
            yield Answer(told, seen.pixels.tobytes())


def _read(data: bytes, facts: Mapping[str, Any]) -> Picture:
    if not data:
        raise DataError("the file is empty")
    try:
        return _decode(
            data,
            read_size(facts["size"]),
            facts["channels"],
            facts["resize"],
            facts["max_pixels"],
            marks=facts.get("marks", False),
        )
    except (DataError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise DataError(what_it_is(data, FORMATS)) from None
    except Exception as error:  # Pillow's decoders raise a dozen kinds of exception on broken bytes
        raise DataError(f"broken or cut short: {one_line(error)[:120]}") from None


def _decode(data: bytes, size: Size, channels: int, resize: Resize, max_pixels: int, *, marks: bool = False) -> Picture:
    told = prepared(data)
    longest = max(height_width(size))  # the picture may be on its side yet
    known = tuple(name for name in FORMATS if name != "HEIF" or name in Image.OPEN)
    with Image.open(io.BytesIO(told.data), formats=known) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise DataError(f"{width} x {height} pixels are more than {max_pixels:,}")
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise DataError("an animation or a file of several pages; save each picture as its own file")
        mode = image.mode
        if width * height > PIXELS_A_SECOND // 10:
            allow(SECONDS + width * height / PIXELS_A_SECOND, MEMORY + BYTES_A_PIXEL * width * height)
        if not marks:  # decodes a JPEG at a fraction of its size, where that is enough
            image.draft(None, (GAP * longest, GAP * longest))
        image.load()
        if image.format in ("JPEG", "MPO") and _cut_and_closed(data, image, longest):
            raise DataError("broken or cut short: the JPEG ends before its picture does")
        exif = image.getexif()
        turned = exif.get(0x0112, 1)
        if turned in (5, 6, 7, 8):
            width, height = height, width
        small = (
            _marked(image, told) if marks else eight_bits(image, "L" if channels == 1 else "RGB", told, size=longest)
        )
        if turned in _TURNS:
            small = small.transpose(_TURNS[turned])
        fitted = (
            _fit_marks(small, size, resize) if marks else fit_image(small, size=size, channels=channels, resize=resize)
        )
        return Picture(fitted, width, height, mode, _taken(exif))


def _taken(exif: Image.Exif) -> str:
    """DateTimeOriginal, or else DateTime, of a picture's EXIF; empty where neither is text of a time's length."""
    try:
        found = exif.get_ifd(0x8769).get(0x9003) or exif.get(0x0132)
    except Exception:  # a damaged directory does not make the picture unusable
        return ""
    text = found.strip("\0 ") if isinstance(found, str) else ""
    return text if len(text) == len("YYYY:MM:DD HH:MM:SS") else ""


def _cut_and_closed(data: bytes, image: Image.Image, size: int) -> bool:
    """Whether a JPEG was cut and then closed with an end marker: the decoder fills what is missing with middle grey.

    The test: put other bytes before the end marker. A whole JPEG comes out the same, since its decoder has all it needs
    by then; of a cut one the decoder takes them for the missing part.
    """
    # a last pixel that is not middle grey was not filled in
    last = image.getpixel((image.width - 1, image.height - 1))
    values = last if isinstance(last, tuple) else (last,)
    if not all(126 <= float(value or 0) <= 130 for value in values):
        return False
    at = data.rfind(b"\xff\xd9")
    if image.format == "MPO" or at < 0:
        return False
    junk = bytes(range(1, 250, 3)) * 8
    with Image.open(io.BytesIO(data[:at] + junk + b"\xff\xd9"), formats=("JPEG",)) as other:
        other.draft(None, (GAP * size, GAP * size))
        other.load()
        return other.tobytes() != image.tobytes()


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def fit_image(image: Image.Image, *, size: Size, channels: int, resize: Resize) -> npt.NDArray[np.uint8]:
    """`image` as uint8 (channels, height, width), its colours converted.

    It is cut to the wanted shape, padded with black to it, or stretched. An image of that size already keeps its pixel
    values.
    """
    image = eight_bits(image, "L" if channels == 1 else "RGB")
    array = np.asarray(_placed(image, size, resize, _scaled), dtype=np.uint8)
    return np.ascontiguousarray(array[None] if channels == 1 else array.transpose(2, 0, 1))


Box = tuple[float, float, float, float]


def _placed(
    image: Image.Image, size: Size, resize: Resize, scaled: Callable[[Image.Image, int, int, Box], Image.Image]
) -> Image.Image:
    """`image` cut, padded or stretched to a size; `scaled` brings a part of an image to a width and a height."""
    width, height = image.size
    rows, columns = height_width(size)
    if (width, height) != (columns, rows):
        if resize == "crop":
            # the largest part of the wanted shape, in the middle
            wide, high = min(width, height * columns / rows), min(height, width * rows / columns)
            left, top = (width - wide) / 2, (height - high) / 2
            image = scaled(image, columns, rows, (left, top, left + wide, top + high))
        elif resize == "stretch":
            image = scaled(image, columns, rows, (0, 0, width, height))
        else:
            scale = min(columns / width, rows / height)
            inner = scaled(image, max(1, round(width * scale)), max(1, round(height * scale)), (0, 0, width, height))
            image = Image.new(image.mode, (columns, rows))
            image.paste(inner, ((columns - inner.width) // 2, (rows - inner.height) // 2))
    return image


def _scaled(image: Image.Image, width: int, height: int, box: Box) -> Image.Image:
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def _marked(image: Image.Image, told: Prepared) -> Image.Image:
    """The marked pixels of a mask as floats, 1 or 0."""
    # of 16 bits, 1 is marked as well, and 8 bits have no place for it
    values = np.asarray(image if image.mode.startswith(("I", "F")) else eight_bits(image, "L", told))
    # what a JPEG leaves beside its edges is not marked
    least = 0 if image.format in EXACT else values.max() / 2
    return Image.fromarray((values > least).astype(np.float32))


def _fit_marks(image: Image.Image, size: Size, resize: Resize) -> npt.NDArray[np.uint8]:
    """Where a pixel of a size, (1, height, width), takes in any marked one: 255 or 0. A thin line stays."""
    placed = np.asarray(_placed(image, size, resize, _averaged))
    return np.where(placed > 0, np.uint8(255), np.uint8(0))[None]


def _averaged(image: Image.Image, width: int, height: int, box: Box) -> Image.Image:
    """Plain means of the pixels that a pixel takes in, as floats: none is lost by rounding."""
    return image.resize((width, height), Image.Resampling.BOX, box=box)
