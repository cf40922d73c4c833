"""What an image shows where (gradients), and what it is made of wherever it lies (composition)."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.floating[Any]]
Images = NDArray[np.uint8]

SHARES = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 1.0])


def _grey(images: Images) -> NDArray[np.float32]:
    """(B, H, W) in [0, 1], the mean over colours."""
    grey: NDArray[np.float32] = images.mean(1, dtype=np.float32)
    return grey / np.float32(255.0)


def gradient_histograms(images: Images, grid: int = 7, bins: int = 8) -> NDArray[np.float32]:
    """Histograms of signed gradient direction on a grid of cells, weighted by gradient length, (B, bins * grid * grid).

    HOG (Dalal & Triggs 2005) without block normalisation and with directions over the full circle; square roots are
    taken so that strong edges do not drown weak ones. Rows and columns that do not fill a cell are left out.
    """
    x = _grey(images)
    b, h, w = x.shape
    grid = min(grid, h - 1, w - 1)
    across, down = np.zeros_like(x), np.zeros_like(x)
    across[:, :, 1:-1] = x[:, :, 2:] - x[:, :, :-2]
    down[:, 1:-1] = x[:, 2:] - x[:, :-2]
    length = np.hypot(across, down)
    angle = (np.arctan2(down, across) / (2 * np.pi) + 0.5) * bins
    lower = np.floor(angle)
    upper_share = angle - lower
    lower = lower.astype(np.int64) % bins
    rows, columns = h // grid, w // grid
    cell = np.full((h, w), -1)
    for i in range(grid):
        for j in range(grid):
            cell[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns] = i * grid + j
    inside = cell >= 0
    place = np.arange(b)[:, None] * (grid * grid * bins) + cell[inside] * bins
    total = np.bincount(
        np.concatenate([(place + lower[:, inside]).ravel(), (place + (lower[:, inside] + 1) % bins).ravel()]),
        np.concatenate([(length * (1 - upper_share))[:, inside].ravel(), (length * upper_share)[:, inside].ravel()]),
        minlength=b * grid * grid * bins,
    )
    return np.sqrt(total).reshape(b, -1).astype(np.float32)


def composition(images: Images) -> NDArray[np.float32]:
    """What an image is made of, wherever it lies: (B, F).

    Quantiles of intensities and of gradient lengths at two scales, and the log length of the lossless WebP file:
    figures that hardly change when the parts of an image are rearranged. They tell how improbable an image of that
    make is bound to be.
    """
    x = _grey(images)
    parts = [_quantiles(x.reshape(len(x), -1))]
    if images.shape[1] > 1:
        parts += [
            _quantiles(images[:, c].reshape(len(x), -1).astype(np.float32) / 255.0) for c in range(images.shape[1])
        ]
    parts.append(_quantiles(_gradient_lengths(x)))
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    parts.append(_quantiles(_gradient_lengths(x[:, :h, :w].reshape(len(x), h // 2, 2, w // 2, 2).mean((2, 4)))))
    return np.concatenate([*parts, np.log(webp_nats(images))[:, None]], 1).astype(np.float32)


def webp_nats(images: Images) -> NDArray[np.float64]:
    """Length of the lossless WebP file of each image, in nats, (B,)."""
    lengths = np.empty(len(images))
    for i, image in enumerate(images):
        file = io.BytesIO()
        picture = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
        Image.fromarray(picture).convert("RGB").save(file, "WEBP", lossless=True, quality=20, method=0)
        lengths[i] = file.tell() * 8 * math.log(2.0)
    return lengths


def _gradient_lengths(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.hypot(np.diff(x, axis=1)[:, :, :-1], np.diff(x, axis=2)[:, :-1]).reshape(len(x), -1)


def _quantiles(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Quantiles, mean, spread and the share above 0.02 of each row of (B, N)."""
    ordered = np.sort(values, 1)
    at = np.minimum((SHARES * values.shape[1]).astype(int), values.shape[1] - 1)
    return np.column_stack([ordered[:, at], values.mean(1), values.std(1), (values > 0.02).mean(1)])
