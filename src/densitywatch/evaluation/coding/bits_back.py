"""Bits-back coding with a VAE (Townsend, Bird, Barber 2019, "Practical lossless compression with latent variables").

To code an image, a latent z is *decoded* from the bits already there with q(z|x), which takes bits away; then x is
coded with p(x|z) and z with the prior. The net cost is minus the ELBO. Decoding goes the other way, and gives the bits
that paid for z back. A chunk of images is coded at once; the first chunk's latents are paid for with random bits, which
the file has to carry.
"""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np
import torch
from torch import Tensor

GRID = 256
"""Steps of the latents' grid for each unit; it must be fine beside a posterior's width, not beside the prior's."""
REACH = 16 * GRID
CHUNK = 16
"""Images whose latents are decoded before the first is coded; few, since their bits must be there beforehand."""
POSITIONS = 16 * 32 * 32
"""Pixels whose probabilities are computed at a time: 256 numbers for each and each component of a mixture."""
START_BITS = 16
"""Random bits for each latent of the first chunk: more than any latent takes."""


def encode(model: Any, x: Tensor) -> np.ndarray:
    """uint8 images (n, C, H, W) as uint32 words."""
    first = min(chunk_of(model), len(x)) * model.settings.latent
    start = np.random.default_rng(0).integers(1, 2**32, first * START_BITS // 32 + 2, dtype=np.uint32)
    coder = constriction.stream.stack.AnsCoder(start)
    for images in x.split(chunk_of(model)):  # type: ignore[no-untyped-call]  # torch has no hints here
        mean, width = _posterior(model, images)
        z = coder.decode(_gaussian(), mean, width)
        for values, tables in reversed(list(_pixels(model, z, images))):
            coder.encode_reverse(values, constriction.stream.model.Categorical(perfect=False), tables)
        coder.encode_reverse(z, _gaussian(), *_prior(z))
    words: np.ndarray = coder.get_compressed()
    return words


def decode(model: Any, n: int, words: np.ndarray) -> Tensor:
    """The n images (n, C, H, W) of such words."""
    coder = constriction.stream.stack.AnsCoder(words)
    family = constriction.stream.model.Categorical(perfect=False)
    chunk = chunk_of(model)
    sizes = [min(chunk, n - begin) for begin in range(0, n, chunk)]
    chunks = []
    for size in reversed(sizes):
        zeros = np.zeros(size * model.settings.latent, np.int32)
        z = coder.decode(_gaussian(), *_prior(zeros))
        images = torch.zeros(size, model.channels, model.size, model.size, dtype=torch.uint8)
        for k, tables in _tables(model, z, images):
            values = torch.from_numpy(coder.decode(family, tables).astype(np.uint8))
            images[:, model.head.sequence[k]] = values.view(size, model.size, model.size)
        coder.encode_reverse(z, _gaussian(), *_posterior(model, images))
        chunks.append(images)
    return torch.cat(chunks[::-1])


def chunk_of(model: Any) -> int:
    """CHUNK, fewer for large images; it follows from the model alone, so that coder and decoder agree."""
    return max(1, min(CHUNK, CHUNK * 64**2 // int(model.size) ** 2))


def _gaussian() -> Any:
    return constriction.stream.model.QuantizedGaussian(-REACH, REACH)


def _prior(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and width of each latent under N(0, 1), in steps of the grid."""
    return np.zeros(len(z)), np.full(len(z), float(GRID))


@torch.inference_mode()
def _posterior(model: Any, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and width of each latent under q(z|x), in steps of the grid, flat."""
    mean, log_variance = model.posterior(images)
    # rounded, so that another machine's last digit does not matter
    width = (0.5 * log_variance).exp() * GRID
    return (mean * GRID).round(decimals=3).flatten().numpy(), width.round(decimals=3).clamp(min=0.1).flatten().numpy()


@torch.inference_mode()
def _tables(model: Any, z: np.ndarray, images: Tensor) -> Any:
    """For each colour k of the sequence, k and the probabilities (n * H * W, 256).

    `images` must hold the colours before k by the time that k is asked for.
    """
    latent = torch.from_numpy(z.reshape(len(images), -1).astype(np.float64)) / GRID
    features = model.decoder_features(latent)
    rows = max(1, POSITIONS // (len(images) * model.size))
    for k in range(model.channels):
        parts = [
            model.head.table(features[:, :, i : i + rows], images[:, :, i : i + rows], k).exp().permute(0, 2, 3, 1)
            for i in range(0, model.size, rows)
        ]
        table = torch.cat(parts, 1).reshape(-1, 256)
        yield k, table.mul_(1 << 22).round_().add_(1).numpy()


def _pixels(model: Any, z: np.ndarray, images: Tensor) -> Any:
    """Values and probabilities of each colour of known images."""
    for k, tables in _tables(model, z, images):
        yield images[:, model.head.sequence[k]].flatten().numpy().astype(np.int32), tables
