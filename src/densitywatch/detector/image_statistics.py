"""Statistics of images without a network: where edges run, what an image is made of, how long its file is."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image

from densitywatch.arrays import Floats, Pixels

LEVELS = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 1.0])
"""The quantiles that are taken; 1 is the largest value."""


def _grey(images: Pixels) -> Floats:
    """(B, H, W) in [0, 1], the mean over colours, float32."""
    grey: Floats = images.mean(1, dtype=np.float32)
    return grey / np.float32(255.0)


def cell_sums(maps: Floats, grid: int) -> Floats:
    """Sums of maps (..., H, W) over the cells of a grid that covers them whole: (..., grid, grid).

    A row or column that two cells share counts for both, by the share that lies in each.
    """
    rows, columns = _shares(maps.shape[-2], grid), _shares(maps.shape[-1], grid)
    return np.asarray(rows @ maps @ columns.T)


def _shares(length: int, grid: int) -> Floats:
    """The share of each of `length` pixels that lies in each cell of a line: (grid, length), columns sum to 1."""
    edges = np.arange(grid + 1) * length / grid
    pixel = np.arange(length)
    shares = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return np.asarray(np.maximum(shares, 0.0), dtype=np.float32)


def gradient_histograms(images: Pixels, grid: int = 7, bins: int = 8) -> Floats:
    """Histograms of signed gradient direction on a grid of cells, weighted by gradient length, (B, grid * grid * bins).

    HOG (Dalal & Triggs 2005) without block normalisation and with directions over the full circle; square roots are
    taken so that strong edges do not drown weak ones.
    """
    x = _grey(images)
    b, h, w = x.shape
    grid = min(grid, h - 1, w - 1)
    # central differences: the gradient at a pixel from its two neighbours; 0 at the border
    across, down = np.zeros_like(x), np.zeros_like(x)
    across[:, :, 1:-1] = x[:, :, 2:] - x[:, :, :-2]
    down[:, 1:-1] = x[:, 2:] - x[:, :-2]
    length = np.hypot(across, down)
    # the direction in bins, 0 to `bins`; a direction between two bins is shared by both in proportion
    angle = (np.arctan2(down, across) / (2 * np.pi) + 0.5) * bins
    lower = np.floor(angle)
    upper_length = (angle - lower) * length
    lower_length = length - upper_length
    first = lower.astype(np.int64) % bins
    second = (first + 1) % bins
    total = np.empty((b, grid, grid, bins))
    for k in range(bins):
        total[..., k] = cell_sums(lower_length * (first == k) + upper_length * (second == k), grid)
    return np.sqrt(np.maximum(total, 0.0)).reshape(b, -1).astype(np.float32)


def composition_statistics(images: Pixels) -> Floats:
    """What an image is made of, wherever in the image it is: (B, F).

    Quantiles of intensities and of gradient lengths at two scales, and the log length of the lossless WebP file.
    These hardly change when the parts of an image are rearranged. They tell how improbable an image of this
    composition has to be (score_regression.py).
    """
    x = _grey(images)
    parts = [_distribution(x.reshape(len(x), -1))]
    if images.shape[1] > 1:
        parts += [
            _distribution(images[:, c].reshape(len(x), -1).astype(np.float32) / 255.0) for c in range(images.shape[1])
        ]
    parts.append(_distribution(_gradient_lengths(x)))
    # the second scale: means of 2 x 2 pixels
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    parts.append(_distribution(_gradient_lengths(x[:, :h, :w].reshape(len(x), h // 2, 2, w // 2, 2).mean((2, 4)))))
    return np.concatenate([*parts, np.log(webp_nats(images))[:, None]], 1).astype(np.float32)


def webp_nats(images: Pixels) -> Floats:
    """Length of the lossless WebP file of each image, in nats (bytes * 8 bits * ln 2), (B,)."""
    lengths = np.empty(len(images))
    for i, image in enumerate(images):
        file = io.BytesIO()
        picture = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
        Image.fromarray(picture).convert("RGB").save(file, "WEBP", lossless=True, quality=20, method=0)
        lengths[i] = file.tell() * 8 * math.log(2.0)
    return lengths


def _gradient_lengths(x: Floats) -> Floats:
    """Lengths of forward differences of (B, H, W), (B, (H - 1) * (W - 1))."""
    return np.hypot(np.diff(x, axis=1)[:, :, :-1], np.diff(x, axis=2)[:, :-1]).reshape(len(x), -1)


def _distribution(values: Floats) -> Floats:
    """Quantiles at LEVELS, mean, standard deviation and the share above 0.02 of each row of (B, N)."""
    ordered = np.sort(values, 1)
    at = np.minimum((LEVELS * values.shape[1]).astype(int), values.shape[1] - 1)
    return np.column_stack([ordered[:, at], values.mean(1), values.std(1), (values > 0.02).mean(1)])
