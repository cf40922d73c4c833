"""Images as a file that a model's own probabilities make small, and back: the proof that a likelihood is real.

A density with pixels in sequence codes them with a range coder; a VAE codes its latents and its pixels with bits-back
(bits_back.py). Encoder and decoder must see the very same probabilities, so both take them from the same walk over
the pixels with the same number of images at a time, in float64 on one thread, and round them to whole 2^-22ths: what
another process or another machine may change is some 1e-15, which the rounding swallows.

    file: magic (8 bytes), model.safetensors' digest (16), payload's digest (16), images' digest (16),
          images, channels, size, bytes of labels (uint32 each), labels (one byte an image), payload (uint32 words)

`python -m densitywatch.evaluation.coding.image_code FILE MODEL_FOLDER OUT.npy` decodes.
"""

from __future__ import annotations

import hashlib
import io
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import constriction
import numpy as np
import torch
from torch import Tensor

from densitywatch.errors import DataError, DensitywatchError, ModelError
from densitywatch.evaluation.coding import bits_back
from densitywatch.files import write_whole
from densitywatch.models.common.sampling import walk
from densitywatch.models.storage import WEIGHTS, load_model_folder

MAGIC = b"dwcode1\n"
HEADER = struct.Struct("<8s16s16s16sIIII")
PARTS = 1 << 22
"""Probabilities are whole numbers of 1 / PARTS, at least one."""


@dataclass(frozen=True)
class Code:
    """What stands in a file."""

    model: bytes
    images: bytes
    shape: tuple[int, int, int]
    """Number of images, channels, size."""
    labels: np.ndarray | None
    """One byte an image, for conditional models."""
    words: np.ndarray
    """The payload, uint32."""

    def to_bytes(self) -> bytes:
        payload = self.words.astype("<u4").tobytes()
        labels = b"" if self.labels is None else self.labels.astype(np.uint8).tobytes()
        n, channels, size = self.shape
        header = HEADER.pack(MAGIC, self.model, digest(labels + payload), self.images, n, channels, size, len(labels))
        return header + labels + payload


def read_code(path: Path) -> Code:
    """The file's content, checked against the digest it carries. Raises DataError when it is not whole or no code."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the path of a file that was coded") from None
    if len(data) < HEADER.size or not data.startswith(MAGIC):
        raise DataError(f"{path}: is no file of coded images; give one that `densitywatch verify-likelihood` wrote")
    _, model, content, images, n, channels, size, labels = HEADER.unpack_from(data)
    rest = data[HEADER.size :]
    if digest(rest) != content or labels > len(rest) or (len(rest) - labels) % 4:
        raise DataError(f"{path}: was altered or cut short, so nothing is decoded; code the images again")
    return Code(
        model,
        images,
        (n, channels, size),
        np.frombuffer(rest[:labels], np.uint8) if labels else None,
        np.frombuffer(rest[labels:], "<u4").astype(np.uint32),
    )


def encode_images(folder: Path, images: np.ndarray, labels: np.ndarray | None = None) -> Code:
    """Code uint8 images (n, C, H, W) with the model in `folder`; labels (n,) for a conditional one.

    Raises ModelError when the model is of another size or offers no code.
    """
    model = _load(folder)
    if images.shape[1:] != (model.channels, model.size, model.size):
        raise ModelError(
            f"{folder}: codes {model.channels} x {model.size} x {model.size} images, not {images.shape[1:]};"
            " take a model that was trained on such images"
        )
    if not getattr(model, "conditional", False):  # the settings may ask for labels where the dataset has none
        labels = None
    elif labels is None or labels.min() < 0:
        raise ModelError(f"{folder}: is conditional and codes labelled images alone; take an unconditional model")
    x = torch.from_numpy(np.array(images))
    with one_thread():
        if hasattr(model, "steps"):
            words = _range_encode(model, x, None if labels is None else torch.from_numpy(labels.astype(np.int64)))
        else:
            words = bits_back.encode(model, x)
    shape = (len(images), model.channels, model.size)
    return Code(model_digest(folder), digest(images.tobytes()), shape, labels, words)


def decode_images(folder: Path, code: Code) -> np.ndarray:
    """The images (n, C, H, W) of a code.

    Raises ModelError for another model than the coder, DataError when the images are not what was coded.
    """
    if model_digest(folder) != code.model:
        raise ModelError(f"{folder}: is not the model that these images were coded with; decode them with that one")
    model = _load(folder)
    n, channels, size = code.shape
    if (channels, size) != (model.channels, model.size):
        raise ModelError(
            f"{folder}: decodes {model.channels} x {model.size} x {model.size} images, the file has"
            f" {channels} x {size} x {size}; decode them with the model that coded them"
        )
    with one_thread():
        if hasattr(model, "steps"):
            labels = None if code.labels is None else torch.from_numpy(code.labels.astype(np.int64))
            x = _range_decode(model, n, labels, code.words)
        else:
            x = bits_back.decode(model, n, code.words)
    images: np.ndarray = x.numpy()
    if digest(np.ascontiguousarray(images).tobytes()) != code.images:
        raise DataError("the decoded images are not the ones that were coded: this machine's probabilities differ")
    return images


def probabilities(cumulated: Tensor) -> np.ndarray:
    """Cumulated probabilities (B, 255) of the values 0..254 as (B, 256) whole multiples of 1 / PARTS, none zero."""
    edges = (cumulated.clamp(0.0, 1.0) * (PARTS - 256)).round_().cummax(1).values
    low = torch.zeros(len(edges), 1, dtype=edges.dtype)
    counts = torch.diff(edges, dim=1, prepend=low, append=low + (PARTS - 256)) + 1
    table: np.ndarray = (counts / PARTS).numpy()
    return table


def _range_encode(model: Any, x: Tensor, labels: Tensor | None) -> np.ndarray:
    family = constriction.stream.model.Categorical(perfect=False)
    coder = constriction.stream.queue.RangeEncoder()
    values = iter(x[:, model.head.sequence].permute(2, 3, 1, 0).reshape(-1, len(x)).long())

    def choose(cumulated: Tensor) -> Tensor:
        value: Tensor = next(values)
        coder.encode(value.numpy().astype(np.int32), family, probabilities(cumulated))
        return value

    walk(model, len(x), labels, choose)
    words: np.ndarray = coder.get_compressed()
    return words


def _range_decode(model: Any, n: int, labels: Tensor | None, words: np.ndarray) -> Tensor:
    family = constriction.stream.model.Categorical(perfect=False)
    coder = constriction.stream.queue.RangeDecoder(words)

    def choose(cumulated: Tensor) -> Tensor:
        return torch.from_numpy(coder.decode(family, probabilities(cumulated)).astype(np.int64))

    return walk(model, n, labels, choose)


def _load(folder: Path) -> Any:
    model: Any = load_model_folder(folder)
    if not hasattr(model, "steps") and not hasattr(model, "posterior"):
        raise ModelError(f"{folder}: has no likelihood to code with; take a model with log_prob or an ELBO")
    return model.double()


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums are taken in the same order on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def digest(data: bytes) -> bytes:
    """The first 16 bytes of SHA-256."""
    return hashlib.sha256(data).digest()[:16]


def model_digest(folder: Path) -> bytes:
    """Of the weights' file, settings included."""
    try:
        return digest((folder / WEIGHTS).read_bytes())
    except OSError:
        raise ModelError(f"{folder}: no such model; train it with `dvc repro train@{folder.name}`") from None


def main(file: str, folder: str, out: str) -> None:
    """Decode `file` with the model in `folder` into the array `out`, whole or not at all."""
    images = decode_images(Path(folder), read_code(Path(file)))
    buffer = io.BytesIO()
    np.save(buffer, images, allow_pickle=False)
    write_whole(Path(out), buffer.getvalue())


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except DensitywatchError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
