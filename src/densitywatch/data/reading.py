"""The size at which images are read, and how many are read at a time.

`prepare` stores images at `data.size`. A model, the feature network and the detector each read them at their own size,
by default at most 32 pixels a side: the cost of a density grows with the number of pixels.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from densitywatch.arrays import Pixels
from densitywatch.errors import ModelError
from densitywatch.params import LARGEST_STORED
from densitywatch.sizes import Size, height_width, read_size

LARGEST_BY_DEFAULT = 32
MEMORY = 2 << 30
"""Bytes that a batch of images may take: on a machine of 8 GiB two stages at once still fit."""
BYTES_A_PIXEL = 2400
"""Bytes that a network keeps for a pixel: about 600 numbers, features and parameters of the distribution."""
HELD = 1 << 30
"""Bytes that images kept together may take."""
KEPT = 256 << 20
"""Resized images of a split are kept in memory up to this many bytes, so that an epoch need not resize them again."""
PART = 64 << 20
"""Bytes of images that are resized at a time."""


class Images(Protocol):
    """uint8 images (N, C, H, W), in memory or read when they are asked for: an array, a memory map, `Resized`, `Rows`.

    Indexing by a number, a slice or an array of rows gives an array.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


def reading_size(asked: int | None, data_size: Size) -> int:
    """Pixels a side that a reader sees: what params ask for, or else the shorter side of the data's, at most 32.

    A reader sees squares: what is none is squeezed into one.
    """
    return min(*height_width(data_size), LARGEST_BY_DEFAULT) if asked is None else asked


def stored_size(model: Any) -> Size:
    """Size of the images of the dataset that a model was trained on.

    Raises ModelError where the header of the model's file has no usable size.
    """
    told = getattr(model, "header", {}).get("data_size", model.size)
    try:
        size = read_size(told)
        height, width = height_width(size)
        if min(height, width) < 1 or height * width > LARGEST_STORED**2:
            raise ValueError
    except ValueError:
        raise ModelError(
            f"the model's file says that its images had {told!r:.40} pixels a side; train it again"
        ) from None
    return size


def size_of(model: Any, otherwise: int) -> int:
    """Pixels a side of the images that a model takes; `otherwise` for one that takes any."""
    return int(getattr(model, "size", otherwise))


def resized(images: Pixels, size: Size) -> Pixels:
    """Images (N, C, H, W) at another size; the same array where they have that size already.

    Pillow's antialiased bilinear filter, which computes in whole numbers: every machine gives the same bytes.
    """
    height, width = height_width(size)
    if images.shape[2:] == (height, width):
        return images
    out = np.empty((len(images), images.shape[1], height, width), np.uint8)
    for image, small in zip(images, out, strict=True):
        if len(image) == 3:
            small[:] = np.asarray(_scaled(np.ascontiguousarray(image.transpose(1, 2, 0)), (width, height))).transpose(
                2, 0, 1
            )
        else:
            for plane, into in zip(image, small, strict=True):
                into[:] = np.asarray(_scaled(np.ascontiguousarray(plane), (width, height)))
    return out


def _scaled(pixels: Pixels, width_height: tuple[int, int]) -> Image.Image:
    return Image.fromarray(pixels).resize(width_height, Image.Resampling.BILINEAR)


def at_size(images: Images, size: Size) -> Images:
    """The same images at another size, each resized when it is asked for."""
    return images if tuple(images.shape[2:]) == height_width(size) else Resized(images, size)


class Resized:
    """Images that are resized when they are asked for, and kept where all of them fit into KEPT bytes."""

    def __init__(self, images: Images, size: Size) -> None:
        self.images, self.size = images, size
        self.shape = (len(images), images.shape[1], *height_width(size))
        keeps = int(np.prod(self.shape)) <= KEPT
        self._kept = np.empty(self.shape, np.uint8) if keeps else None
        self._known = np.zeros(len(images) if keeps else 0, dtype=np.bool_)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Any) -> Pixels:
        wanted = np.arange(len(self))[rows]
        flat = np.atleast_1d(wanted)
        if self._kept is None:
            found = np.empty((len(flat), *self.shape[1:]), np.uint8)
            self._read(flat, found, np.arange(len(flat)))
        else:
            missing = np.unique(flat[~self._known[flat]])
            self._read(missing, self._kept, missing)
            self._known[missing] = True
            found = self._kept[flat]
        return found if np.ndim(wanted) else np.asarray(found[0])

    def _read(self, rows: npt.NDArray[np.int64], into: Pixels, places: npt.NDArray[np.int64]) -> None:
        """The images of `rows`, resized, into the `places` of an array, a part at a time."""
        step = images_within(len(rows), int(np.prod(self.images.shape[1:])), PART)
        for start in range(0, len(rows), step):
            into[places[start : start + step]] = resized(self.images[rows[start : start + step]], self.size)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)


class Rows:
    """Some rows of images, read when they are asked for."""

    def __init__(self, images: Images, rows: npt.NDArray[np.int64]) -> None:
        self.images, self.rows = images, rows
        self.shape = (len(rows), *images.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> Pixels:
        return np.asarray(self.images[self.rows[rows]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)


def in_memory(images: Images) -> Pixels:
    """All of the images as one writable array."""
    return images[:] if isinstance(images, Resized | Rows) else np.array(images[:], dtype=np.uint8)


def images_within(most: int, bytes_an_image: int, memory: int = HELD) -> int:
    """Number of images that fit into `memory` bytes: at least one, at most `most`."""
    return max(1, min(most, memory // max(1, bytes_an_image)))


def images_at_once(most: int, size: Size) -> int:
    """Number of images of a size that a network reads at a time: `most`, fewer of large ones."""
    height, width = height_width(size)
    return images_within(most, BYTES_A_PIXEL * height * width, MEMORY)
