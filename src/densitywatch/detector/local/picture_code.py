"""What a picture shows as a whole, in at most 64 numbers: its code, from which each place is expected.

Pictures differ as wholes: in kind, in layout, in light from one side. What is usual at a place of one is not usual
there in another. The code is made of the features' means over 8 x 8 parts of the picture, on their leading principal
components. A place's Gaussian given the code (densities.py) then asks whether the place fits its own picture.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from densitywatch.arrays import Arrays, Floats

PARTS = 8
"""Parts of the picture a side."""
NUMBERS = 64
"""The most numbers of a code."""
IMAGES_A_NUMBER = 8
"""Training images that it takes for each number: with fewer, places would be fitted to their own noise."""
IMAGES = 1000
"""Training images that the components are taken from."""
LEAST_SPREAD = 1e-2
"""Spread of a mean that hardly changes, as a share of the median one, and the least spread of a component, as a share
of the largest."""


def part_means(maps: Tensor) -> Tensor:
    """Means of features (B, D, h, w) over the parts of the picture, (B, D * parts)."""
    return F.adaptive_avg_pool2d(maps, (min(PARTS, maps.shape[2]), min(PARTS, maps.shape[3]))).flatten(1)


def fit_code(rows: Floats) -> Arrays:
    """The components of rows of part means (N, M): (row - mean) @ axes are numbers of variance 1. Empty for none."""
    rows = rows.astype(np.float64)
    mean, spread = rows.mean(0), rows.std(0)
    spread = np.maximum(spread, LEAST_SPREAD * np.median(spread) + 1e-6)
    _, singular, vectors = np.linalg.svd((rows - mean) / spread, full_matrices=False)
    singular = singular[: min(NUMBERS, len(rows) // IMAGES_A_NUMBER)]
    singular = singular[singular > LEAST_SPREAD * singular.max(initial=1e-6)]
    if not len(singular):
        return {}
    axes = vectors[: len(singular)].T / spread[:, None] / (singular / np.sqrt(len(rows)))
    return {"mean": mean.astype(np.float32), "axes": np.ascontiguousarray(axes, dtype=np.float32)}


def code_of(maps: Tensor, fitted: Arrays) -> Tensor:
    """The codes of pictures, of their features (B, D, h, w): (B, K)."""
    return (part_means(maps) - torch.as_tensor(fitted["mean"])) @ torch.as_tensor(fitted["axes"])
