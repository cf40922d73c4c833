"""Bits-back coding with a VAE (Townsend, Bird, Barber 2019, "Practical lossless compression with latent variables").

The coder is a stack of bits. To code an image x:

1. Decode a latent z from the bits that are on the stack, with q(z|x). This takes -log2 q(z|x) bits away.
2. Code x with p(x|z). This adds -log2 p(x|z) bits.
3. Code z with the prior p(z). This adds -log2 p(z) bits.

On average the stack grows by -E_q[log2 p(x|z) + log2 p(z) - log2 q(z|x)] bits, which is minus the ELBO. Decoding does
the three steps backwards: it pops z, pops x, and pushes z again with q(z|x), which gives back the bits of step 1. A
chunk of images is coded at once. The latents of the first chunk come from random bits, which the file has to carry.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import constriction
import numpy as np
import torch
from torch import Tensor

from densitywatch.models.common.pixel_head import PixelHead

GRID = 256
"""Latents are rounded to multiples of 1 / GRID. This must be fine compared with the width of a posterior."""
REACH = 16 * GRID
"""Latents lie within +- 16."""
CHUNK = 16
"""Images whose latents are decoded before the first image is coded; few, since those bits must be there beforehand."""
POSITIONS = 16 * 32 * 32
"""Pixels whose probabilities are computed at a time: each takes 256 numbers for every component of a mixture."""
START_BITS = 16
"""Random bits for each latent of the first chunk: more than any latent takes."""


class LatentModel(Protocol):
    """What bits-back needs of a VAE."""

    settings: Any
    head: PixelHead
    channels: int
    size: int

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), each (B, latent)."""

    def decoder_features(self, z: Tensor) -> Tensor:
        """What the head makes p(x|z) of, (B, F, H, W)."""


def encode(model: LatentModel, x: Tensor) -> np.ndarray:
    """uint8 images (n, C, H, W) as uint32 words: the stack after all images are coded."""
    first = min(chunk_of(model), len(x)) * model.settings.latent
    start = np.random.default_rng(0).integers(1, 2**32, first * START_BITS // 32 + 2, dtype=np.uint32)
    coder = constriction.stream.stack.AnsCoder(start)
    for images in x.split(chunk_of(model)):  # type: ignore[no-untyped-call]  # torch has no hints here
        mean, width = _posterior(model, images)
        z = coder.decode(_gaussian(), mean, width)  # step 1
        # step 2, the last colour first: the decoder pops the first colour first and needs it for the next
        for values, tables in reversed(list(_pixels(model, z, images))):
            coder.encode_reverse(values, constriction.stream.model.Categorical(perfect=False), tables)
        coder.encode_reverse(z, _gaussian(), *_prior(z))  # step 3
    words: np.ndarray = coder.get_compressed()
    return words


def decode(model: LatentModel, n: int, words: np.ndarray) -> Tensor:
    """The n images (n, C, H, W) of the words that `encode` gave."""
    coder = constriction.stream.stack.AnsCoder(words)
    family = constriction.stream.model.Categorical(perfect=False)
    chunk = chunk_of(model)
    sizes = [min(chunk, n - begin) for begin in range(0, n, chunk)]
    chunks = []
    for size in reversed(sizes):  # a stack: the last chunk comes out first
        zeros = np.zeros(size * model.settings.latent, np.int32)
        z = coder.decode(_gaussian(), *_prior(zeros))  # undoes step 3
        images = torch.zeros(size, model.channels, model.size, model.size, dtype=torch.uint8)
        for k, tables in _tables(model, z, images):  # undoes step 2
            values = torch.from_numpy(coder.decode(family, tables).astype(np.uint8))
            images[:, model.head.sequence[k]] = values.view(size, model.size, model.size)
        coder.encode_reverse(z, _gaussian(), *_posterior(model, images))  # undoes step 1
        chunks.append(images)
    return torch.cat(chunks[::-1])


def chunk_of(model: LatentModel) -> int:
    """CHUNK, or fewer for large images. It depends only on the model, so that coder and decoder agree."""
    return max(1, min(CHUNK, CHUNK * 64**2 // int(model.size) ** 2))


def _gaussian() -> Any:
    """The family of Gaussians over the grid; mean and width are given with each use."""
    return constriction.stream.model.QuantizedGaussian(-REACH, REACH)


def _prior(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and width of each latent under N(0, 1), in steps of the grid."""
    return np.zeros(len(z)), np.full(len(z), float(GRID))


@torch.inference_mode()
def _posterior(model: LatentModel, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and width of each latent under q(z|x), in steps of the grid, flat."""
    mean, log_variance = model.posterior(images)
    # rounded, so that a difference in another machine's last digit does not matter
    width = (0.5 * log_variance).exp() * GRID
    return (mean * GRID).round(decimals=3).flatten().numpy(), width.round(decimals=3).clamp(min=0.1).flatten().numpy()


@torch.inference_mode()
def _tables(model: LatentModel, z: np.ndarray, images: Tensor) -> Iterator[tuple[int, np.ndarray]]:
    """For each colour k of the sequence, k and the weights (n * H * W, 256) of its values.

    `images` must hold the colours before k when k is asked for.
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
        # whole numbers of 2^-22, none zero: the same on every machine, and every value can be coded
        yield k, table.mul_(1 << 22).round_().add_(1).numpy()


def _pixels(model: LatentModel, z: np.ndarray, images: Tensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Values (n * H * W,) and their weights (n * H * W, 256) for each colour of known images."""
    for k, tables in _tables(model, z, images):
        yield images[:, model.head.sequence[k]].flatten().numpy().astype(np.int32), tables
