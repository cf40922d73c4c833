"""`densitywatch verify-likelihood`: bits/dim as the size of a file that another process decodes, byte for byte.

A likelihood computed by a model's own formula can be wrong in ways that flatter the model: it may use pixels that come
later, or probabilities that do not sum to one. A decoder has nothing but the file and the model. If it gives the images
back, the size of the file is an honest figure.
"""

from __future__ import annotations

import io
import lzma
import math
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densitywatch.data.dataset import open_split, read_info
from densitywatch.data.encoding import as_pillow
from densitywatch.data.reading import images_at_once
from densitywatch.errors import DataError, ModelError
from densitywatch.evaluation.coding.image_code import encode_images
from densitywatch.evaluation.measures.context import Context, Metric, Result
from densitywatch.files import write_whole
from densitywatch.models.offers import ExactDensity, PixelSteps, Posterior, ValueWalk
from densitywatch.models.storage import load_model_folder, read_header
from densitywatch.params import Params


@dataclass(frozen=True)
class CodeLength:
    """Bits per dimension of the same images, coded in different ways."""

    images: int
    """How many images."""
    file: float
    """The whole file, header and labels included."""
    computed: float
    """Minus log_prob, or for a VAE minus the ELBO with one draw."""
    png: float
    """One PNG file an image."""
    webp: float
    """One lossless WebP file an image."""
    xz: float
    """One xz file for all images."""


def verify_likelihood(name: str, n: int, params: Params, root: Path, out: Path | None = None) -> CodeLength:
    """Code n test images with models/<name>, decode them in another process, compare every byte.

    The file is kept at `out` if it is given. Raises ModelError when the model has no likelihood or does not fit the
    data, DataError when the decoded images are not the coded ones; then nothing is written.
    """
    folder, data = root / "models" / name, root / "data" / "prepared"
    if n < 1:
        raise ModelError(f"cannot code {n} images: ask for at least one")
    split = open_split(data, "test", read_header(folder)["size"])
    images, labels = np.array(split.images[:n]), split.labels[:n]
    if not len(images):
        raise DataError(f"{data}: has no test images to code; run `densitywatch prepare` with more images")
    code = encode_images(folder, images, labels if read_info(data).class_names else None)
    coded = code.to_bytes()
    with tempfile.TemporaryDirectory() as scratch:
        file, decoded = Path(scratch) / "images.dwcode", Path(scratch) / "decoded.npy"
        file.write_bytes(coded)
        decode_elsewhere(file, folder, decoded)
        if np.load(decoded, allow_pickle=False).tobytes() != images.tobytes():
            raise DataError(f"{name}: the decoded images differ from the coded ones, so this likelihood is not proven")
    if out is not None:
        write_whole(out, coded)
    dimensions = images.size
    return CodeLength(
        images=len(images),
        file=8 * len(coded) / dimensions,
        computed=_computed(folder, images, code.labels, params.seed),
        png=sum(size_as(image, "PNG", optimize=True) for image in images) * 8 / dimensions,
        webp=sum(size_as(image, "WEBP", lossless=True, quality=100, method=6) for image in images) * 8 / dimensions,
        xz=8 * len(lzma.compress(images.tobytes(), preset=9 | lzma.PRESET_EXTREME)) / dimensions,
    )


def decode_elsewhere(file: Path, folder: Path, out: Path) -> None:
    """Decode `file` into the array `out` in another process. Raises DataError with that process's error message."""
    command = [sys.executable, "-m", "densitywatch.evaluation.coding.image_code", str(file), str(folder), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own module
    if done.returncode:
        said = (done.stderr.strip() or "it ended without a message").splitlines()[-1]
        raise DataError(f"decoding in another process failed: {said}")


def code_length(context: Context) -> Result | None:
    """The size of a file that another process decodes, next to the sizes of PNG, WebP and xz, in bits/dim.

    Model: `steps` (pixels in sequence), `walk` (values in an order of its own) or `posterior` (a VAE).
    """
    if not isinstance(context.model, ValueWalk | PixelSteps | Posterior):
        return None
    count = min(context.params.evaluate.code_images, context.info.counts["test"])
    if not count:
        return None
    length = verify_likelihood(context.name, count, context.params, context.data.parents[1])
    metrics: dict[str, Metric] = {
        "code_images": length.images,
        **{f"code_{key}_bits_per_dim": value for key, value in asdict(length).items() if key != "images"},
    }
    note = (
        f"{length.images} test images, coded with the model's own probabilities into {length.file:.3f} bits/dim"
        f" (computed: {length.computed:.3f}), were decoded byte for byte by another process; PNG takes"
        f" {length.png:.2f}, WebP {length.webp:.2f}, xz {length.xz:.2f}."
    )
    return Result(metrics, notes=[note])


@torch.no_grad()
def _computed(folder: Path, images: np.ndarray, labels: np.ndarray | None, seed: int) -> float:
    """Bits/dim of the images by the model's own formula, in float32 and in batches as evaluation does."""
    model: Any = load_model_folder(folder)
    given = [] if labels is None else [torch.from_numpy(labels.astype(np.int64))]
    nats = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        step = images_at_once(64, model.size)
        for begin in range(0, len(images), step):
            x = torch.from_numpy(images[begin : begin + step])
            if isinstance(model, ExactDensity):
                nats += model.log_prob(x, *[y[begin : begin + step] for y in given]).double().sum().item()
            else:
                nats += model.elbo(x).double().sum().item()
    return -nats / (images.size * math.log(2))


def size_as(image: np.ndarray, form: str, **options: Any) -> int:
    """Bytes of one image (C, H, W) in a common format; options: Pillow's."""
    buffer = io.BytesIO()
    as_pillow(image).save(buffer, form, **options)
    return buffer.tell()
