"""Images as a file by a density whose values come in an order of its own, many at a time (offers.ValueWalk).

It does for such a model what coding/image_code.py does for one that takes a pixel after the other, in the same file
format: coder and decoder take their probabilities from the same walk, in float64 on one thread.

`python -m densitywatch.evaluation.value_code FILE MODEL_FOLDER OUT.npy` decodes.
"""

from __future__ import annotations

import io
import lzma
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import constriction
import numpy as np
import torch
from torch import Tensor

from densitywatch.data.dataset import open_split
from densitywatch.data.encoding import as_pillow
from densitywatch.data.reading import images_at_once
from densitywatch.errors import DataError, DensitywatchError, ModelError
from densitywatch.evaluation.coding.image_code import PARTS, Code, digest, model_digest, one_thread, read_code
from densitywatch.evaluation.measures import code_length
from densitywatch.evaluation.measures.code_length import CodeLength
from densitywatch.files import write_whole
from densitywatch.models.offers import ValueWalk
from densitywatch.models.storage import load_model_folder
from densitywatch.params import Params


def verify_likelihood(name: str, n: int, params: Params, root: Path, out: Path | None = None) -> CodeLength:
    """As code_length.verify_likelihood, and also for a model whose values come in an order of its own."""
    folder = root / "models" / name
    model: Any = load_model_folder(folder)
    walks = isinstance(model, ValueWalk)  # by a name, so that the model stays Any
    if n < 1 or not walks:
        return code_length.verify_likelihood(name, n, params, root, out)
    images = np.array(open_split(root / "data" / "prepared", "test", model.size).images[:n])
    if not len(images):
        raise DataError(f"{root}: has no test images to code; run `densitywatch prepare` with more images")
    coded = encode_images(folder, images).to_bytes()
    with tempfile.TemporaryDirectory() as scratch:
        file, decoded = Path(scratch) / "images.dwcode", Path(scratch) / "decoded.npy"
        file.write_bytes(coded)
        decode_elsewhere(file, folder, decoded)
        if np.load(decoded, allow_pickle=False).tobytes() != images.tobytes():
            raise DataError(f"{name}: the decoded images differ from the coded ones, so this likelihood is not proven")
    if out is not None:
        write_whole(out, coded)
    with torch.no_grad():
        parts = torch.split(torch.from_numpy(images), images_at_once(64, model.size))
        nats = sum(model.log_prob(part).double().sum().item() for part in parts)
    bits = 8 / images.size
    return CodeLength(
        images=len(images),
        file=bits * len(coded),
        computed=-nats / (images.size * math.log(2)),
        png=bits * sum(size_as(image, "PNG", optimize=True) for image in images),
        webp=bits * sum(size_as(image, "WEBP", lossless=True, quality=100, method=6) for image in images),
        xz=bits * len(lzma.compress(images.tobytes(), preset=9 | lzma.PRESET_EXTREME)),
    )


def size_as(image: np.ndarray, form: str, **options: Any) -> int:
    """Bytes of one image (C, H, W) in a common format; options: Pillow's."""
    buffer = io.BytesIO()
    as_pillow(image).save(buffer, form, **options)
    return buffer.tell()


def decode_elsewhere(file: Path, folder: Path, out: Path) -> None:
    """Decode `file` into the array `out` in another process. Raises DataError with that process's error message."""
    command = [sys.executable, "-m", "densitywatch.evaluation.value_code", str(file), str(folder), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own module
    if done.returncode:
        said = (done.stderr.strip() or "it ended without a message").splitlines()[-1]
        raise DataError(f"decoding in another process failed: {said}")


def encode_images(folder: Path, images: np.ndarray) -> Code:
    """Code uint8 images (n, C, H, W) with the model in `folder`. Raises ModelError when they do not fit it."""
    model: Any = load_model_folder(folder)
    if images.shape[1:] != (model.channels, model.size, model.size):
        raise ModelError(
            f"{folder}: codes {model.channels} x {model.size} x {model.size} images, not {images.shape[1:]};"
            " take a model that was trained on such images"
        )
    with one_thread():
        words = encode_walk(model.double(), torch.from_numpy(np.array(images)))
    shape = (len(images), model.channels, model.size)
    return Code(model_digest(folder), digest(images.tobytes()), shape, None, words)


def decode_images(folder: Path, code: Code) -> np.ndarray:
    """The images (n, C, H, W) of a code.

    Raises ModelError when the model in `folder` is not the one that coded, DataError when the images are not the coded
    ones.
    """
    if model_digest(folder) != code.model:
        raise ModelError(f"{folder}: is not the model that these images were coded with; decode them with that one")
    model: Any = load_model_folder(folder)
    n, _, size = code.shape
    with one_thread():
        images: np.ndarray = decode_walk(model.double(), n, size, size, code.words).numpy()
    if digest(np.ascontiguousarray(images).tobytes()) != code.images:
        raise DataError(
            "the decoded images are not the ones that were coded, because this machine computes other probabilities;"
            " decode them on the machine that coded them"
        )
    return images


def encode_walk(model: ValueWalk, x: Tensor) -> np.ndarray:
    """Images (n, C, H, W) of any size as uint32 words, in the model's own order of values."""
    family = constriction.stream.model.Categorical(perfect=False)
    coder = constriction.stream.queue.RangeEncoder()

    def choose(cumulated: Tensor, known: Tensor) -> Tensor:
        coder.encode(known.numpy().astype(np.int32), family, probabilities(cumulated))
        return known

    n, _, height, width = x.shape
    model.walk(n, choose, height, width, given=x, rows=height)
    words: np.ndarray = coder.get_compressed()
    return words


def decode_walk(model: ValueWalk, n: int, height: int, width: int, words: np.ndarray) -> Tensor:
    """The n images (n, C, height, width) of the words that `encode_walk` gave."""
    family = constriction.stream.model.Categorical(perfect=False)
    coder = constriction.stream.queue.RangeDecoder(words)

    def choose(cumulated: Tensor, known: Tensor) -> Tensor:
        return torch.from_numpy(coder.decode(family, probabilities(cumulated)).astype(np.int64))

    return model.walk(n, choose, height, width)


def probabilities(cumulated: Tensor) -> np.ndarray:
    """Cumulative probabilities (B, V - 1) of all values but the last as probabilities (B, V) of the values.

    They are whole multiples of 1 / PARTS, and none is zero.
    """
    # one part is reserved for each value; the running maximum removes rounding errors in the order
    parts = PARTS - cumulated.shape[1] - 1
    edges = (cumulated.clamp(0.0, 1.0) * parts).round_().cummax(1).values
    low = torch.zeros(len(edges), 1, dtype=edges.dtype)
    counts = torch.diff(edges, dim=1, prepend=low, append=low + parts) + 1
    table: np.ndarray = (counts / PARTS).numpy()
    return table


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
