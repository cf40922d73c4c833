"""The trivial models that a candidate must beat: what can be had without a network, fitted on training images.

They are measured on the same images as the candidate and at the same size.
"""

from __future__ import annotations

import math

import numpy as np

from densitywatch.arrays import Floats, Pixels
from densitywatch.data.reading import Images, images_within

MOST = 10_000
"""Training images that a trivial model is fitted on."""
PRIOR = 8.0
"""How many images the histogram of all pixels counts as, in the histogram of each one."""


def training_sample(train: Images) -> Pixels:
    """The first MOST training images, or as many as fit into memory; a split is in mixed order."""
    return np.array(train[: images_within(MOST, 8 * math.prod(train.shape[1:]))])


def independent_bits(train: Pixels, images: Pixels) -> Floats:
    """Bits/dim (N,) of `images` when every pixel is drawn alone from its histogram over the training images.

    p(value of pixel d) = (count + PRIOR * q(value)) / (n + PRIOR), where q is the histogram of all pixels, with one
    added to every count. So no value has probability 0.
    """
    n, d = len(train), math.prod(train.shape[1:])
    flat, seen = train.reshape(n, d), images.reshape(len(images), d)
    pooled = np.bincount(flat.ravel(), minlength=256) + 1.0
    pooled /= pooled.sum()
    bits = np.zeros(len(images))
    for pixel in range(d):
        counts = np.bincount(flat[:, pixel], minlength=256)
        bits -= np.log2((counts + PRIOR * pooled) / (n + PRIOR))[seen[:, pixel]]
    return bits / d


def mean_image_errors(train: Pixels, images: Pixels) -> Floats:
    """Mean squared error (N,) of the mean training image, pixels from 0 to 1."""
    mean = train.mean(0, dtype=np.float64)
    return np.array([np.square((image - mean) / 255).mean() for image in images])


def independent_pixels(train: Pixels, count: int, rng: np.random.Generator) -> Pixels:
    """`count` images each of whose pixels comes from the same place of a training image drawn for it alone."""
    flat = train.reshape(len(train), -1)
    places = np.arange(flat.shape[1])
    drawn = [flat[rng.integers(0, len(flat), flat.shape[1]), places] for _ in range(count)]
    return np.stack(drawn).reshape(count, *train.shape[1:])
