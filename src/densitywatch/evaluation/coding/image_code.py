"""Images as a file that a model's own probabilities make small, and back: the proof that a likelihood is real.

A density codes its values one after the other with a range coder (range_code.py). A VAE codes its latents and its
pixels with bits-back (bits_back.py). Coder and decoder must see exactly the same probabilities. So both take them from
the same walk over the values with the same number of images at a time, in float64 on one thread, and round them to
whole multiples of 2^-22. Another process or another machine may differ by about 1e-15, and the rounding removes that.

    file: magic (8 bytes), model.safetensors' digest (16), payload's digest (16), images' digest (16),
          images, channels, size, bytes of labels (uint32 each), labels, payload (uint32 words)

A label takes one byte. Where one of them is above 255, each takes a uint32 and the magic is another one.

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

import numpy as np
import torch

from densitywatch.errors import DataError, DensitywatchError, ModelError
from densitywatch.evaluation.coding import bits_back, range_code
from densitywatch.files import write_whole
from densitywatch.models.offers import PixelSteps, Posterior, ValueWalk
from densitywatch.models.storage import WEIGHTS, load_model_folder

MAGIC = b"dwcode1\n"
MAGIC_OF_WIDE_LABELS = b"dwcode2\n"
LABEL_TYPES = {MAGIC: "u1", MAGIC_OF_WIDE_LABELS: "<u4"}
HEADER = struct.Struct("<8s16s16s16sIIII")


@dataclass(frozen=True)
class Code:
    """The content of a file."""

    model: bytes
    """The digest of the model's weights."""
    images: bytes
    """The digest of the images."""
    shape: tuple[int, int, int]
    """Number of images, channels, size."""
    labels: np.ndarray | None
    """One whole number per image, for conditional models."""
    words: np.ndarray
    """The payload, uint32."""

    def to_bytes(self) -> bytes:
        """The file as bytes."""
        payload = self.words.astype("<u4").tobytes()
        magic = MAGIC if self.labels is None or self.labels.max() <= 255 else MAGIC_OF_WIDE_LABELS
        labels = b"" if self.labels is None else self.labels.astype(LABEL_TYPES[magic]).tobytes()
        n, channels, size = self.shape
        header = HEADER.pack(magic, self.model, digest(labels + payload), self.images, n, channels, size, len(labels))
        return header + labels + payload


def read_code(path: Path) -> Code:
    """The file's content, checked against its digest. Raises DataError for a damaged file or one of another kind."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the path of a coded file") from None
    if len(data) < HEADER.size or data[: len(MAGIC)] not in LABEL_TYPES:
        raise DataError(f"{path}: is not a file of coded images; give one that `densitywatch verify-likelihood` wrote")
    magic, model, content, images, n, channels, size, labels = HEADER.unpack_from(data)
    rest, label_type = data[HEADER.size :], np.dtype(LABEL_TYPES[magic])
    fits = labels <= len(rest) and (len(rest) - labels) % 4 == 0 and labels in (0, n * label_type.itemsize)
    if digest(rest) != content or not fits:
        raise DataError(f"{path}: was changed or cut short, so nothing is decoded; code the images again")
    return Code(
        model,
        images,
        (n, channels, size),
        np.frombuffer(rest[:labels], label_type) if labels else None,
        np.frombuffer(rest[labels:], "<u4").astype(np.uint32),
    )


def encode_images(folder: Path, images: np.ndarray, labels: np.ndarray | None = None) -> Code:
    """Code uint8 images (n, C, H, W) with the model in `folder`; labels (n,) for a conditional one.

    Raises ModelError when the images do not fit the model, or the model has no likelihood.
    """
    model = _load(folder)
    if images.shape[1:] != (model.channels, model.size, model.size):
        raise ModelError(
            f"{folder}: codes {model.channels} x {model.size} x {model.size} images, not {images.shape[1:]};"
            " take a model that was trained on such images"
        )
    if not getattr(model, "conditional", False):  # also when the settings ask for labels and the dataset has none
        labels = None
    elif labels is None or labels.min() < 0:
        raise ModelError(f"{folder}: is conditional and codes only labelled images; take an unconditional model")
    x = torch.from_numpy(np.array(images))
    with one_thread():
        if isinstance(model, ValueWalk):
            words = range_code.encode_walk(model, x)
        elif isinstance(model, PixelSteps):
            given = None if labels is None else torch.from_numpy(labels.astype(np.int64))
            words = range_code.encode_pixels(model, x, given)
        else:
            words = bits_back.encode(model, x)
    shape = (len(images), model.channels, model.size)
    return Code(model_digest(folder), digest(images.tobytes()), shape, labels, words)


def decode_images(folder: Path, code: Code) -> np.ndarray:
    """The images (n, C, H, W) of a code.

    Raises ModelError when the model in `folder` is not the one that coded, DataError when the images are not the coded
    ones.
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
        if isinstance(model, ValueWalk):
            x = range_code.decode_walk(model, n, size, size, code.words)
        elif isinstance(model, PixelSteps):
            labels = None if code.labels is None else torch.from_numpy(code.labels.astype(np.int64))
            x = range_code.decode_pixels(model, n, labels, code.words)
        else:
            x = bits_back.decode(model, n, code.words)
    images: np.ndarray = x.numpy()
    if digest(np.ascontiguousarray(images).tobytes()) != code.images:
        raise DataError(
            "the decoded images are not the ones that were coded, because this machine computes other probabilities;"
            " decode them on the machine that coded them"
        )
    return images


def _load(folder: Path) -> Any:
    """The model in `folder` in float64. Raises ModelError when it has no likelihood to code with."""
    model = load_model_folder(folder)
    if not isinstance(model, ValueWalk | PixelSteps | Posterior):
        raise ModelError(f"{folder}: has no likelihood to code with; take a model with log_prob or an ELBO")
    return model.double()


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread adds numbers in the same order on every machine."""
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
    """The digest of the file of weights, settings included."""
    try:
        return digest((folder / WEIGHTS).read_bytes())
    except OSError:
        raise ModelError(f"{folder}: no such model; train it with `dvc repro train@{folder.name}`") from None


def main(file: str, folder: str, out: str) -> None:
    """Decode `file` with the model in `folder` into the array `out`. `out` is written completely or not at all."""
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
