"""A map of what is unexpected: local features, a density over them, and what normal images show at each place.

    projection    features standardised and on their leading principal components, from some training images
    density       place: a Gaussian for each place. anywhere: one mixture. From all training images, in one pass
    standard      mean and spread of the map at each place, from validation images. above_median: of the map less its
                  median over the image, where the source wants that
    tail          how large the largest and the mean of the largest 1 % become, from validation images

Calibration images take part in none of these, so that ranks among them stay valid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from densitywatch.arrays import Arrays, Floats
from densitywatch.data.reading import Images, at_size, images_at_once
from densitywatch.detector.feature_cache import FeatureCache
from densitywatch.detector.local import densities
from densitywatch.detector.local.sources import Source
from densitywatch.detector.member import FittingData, with_prefix, without_prefix
from densitywatch.detector.tail_combination import fit_tail, tail_surprise

Density = Literal["place", "anywhere"]
PROJECTION_IMAGES, PROJECTION_ROWS = 100, 60_000
"""Training images that the principal components, and the mixture, are taken from, and rows of them."""
STRENGTH_IMAGES = 64
"""Validation images that choose the shrinkage."""
CELLS = 32
"""Most places a side that have a Gaussian of their own; on a finer grid neighbours share one."""
NEIGHBOURS = 5
"""Side of the square of places over which mean and spread of the map are averaged."""
TOP = 0.01
"""The share of places that the mean of the largest is over."""
BATCH, AT_ONCE = 16, 4
"""Images whose features are in memory while a density is fitted, and images that a source reads at once."""


def fit_local(data: FittingData, source: Source, density: Density) -> Arrays:
    """Fit everything that `local_map` and `local_score` need."""
    size = data.train.size
    weights = source.weights()
    training = [at_size(cache.source, size) for cache in (data.train, data.sample)]
    rows = _some_rows(training, source, weights, data.seed)
    fitted = with_prefix("weights", weights) | with_prefix("projection", _fit_projection(rows, source.dimensions))
    if density == "place":
        fitted |= with_prefix("place", _fit_places(data, training, source, fitted))
    else:
        projected = _project(torch.from_numpy(rows), fitted).numpy()
        fitted |= with_prefix("anywhere", densities.anywhere_mixture(projected, data.seed))
    raw = _raw_maps(data.validation, source, fitted)
    standard = fit_standard(raw)
    fitted |= with_prefix(_standard_of(source), standard)
    top, mean_of_top = statistics(standardised(raw, standard))
    return fitted | with_prefix("maximum", fit_tail(top)) | with_prefix("top", fit_tail(mean_of_top))


def local_map(features: FeatureCache, source: Source, fitted: Arrays) -> Floats:
    """Spreads by which each place is less probable than it is in normal images, (B, g, g), g = size / 8."""
    return standardised(_raw_maps(features, source, fitted), without_prefix(_standard_of(source), fitted))


def local_score(features: FeatureCache, source: Source, fitted: Arrays) -> Floats:
    """How rare the largest value of the map and the mean of its largest 1 % are among normal images, nats, (B,)."""
    values = statistics(local_map(features, source, fitted))
    tails = (without_prefix(name, fitted) for name in ("maximum", "top"))
    return np.asarray(sum(tail_surprise(value, tail) for value, tail in zip(values, tails, strict=True)))


def local_surprise(features: FeatureCache, source: Source, fitted: Arrays) -> Floats:
    """-log P(the largest value of a normal image's map is as high) at each place, nats, (B, g, g).

    So maps of several members are on one scale, and their maximum over members is one map.
    """
    return tail_surprise(local_map(features, source, fitted), without_prefix("maximum", fitted))


def statistics(maps: Floats) -> tuple[Floats, Floats]:
    """The largest value of each map (B, g, g), and the mean of its largest TOP, (B,) each."""
    flat = maps.reshape(len(maps), -1)
    count = max(1, round(TOP * flat.shape[1]))
    largest = np.partition(flat, flat.shape[1] - count, 1)[:, -count:]
    return largest.max(1), largest.mean(1)


def fit_standard(raw: Floats) -> Arrays:
    """Mean and spread of normal images' maps (N, g, g) at each place, each averaged over a square of neighbours."""

    def averaged(values: Floats) -> Floats:
        padded = F.pad(torch.as_tensor(values)[None, None], (NEIGHBOURS // 2,) * 4, mode="replicate")
        return np.asarray(F.avg_pool2d(padded, NEIGHBOURS, 1)[0, 0])

    values = raw.astype(np.float64)
    mean = averaged(values.mean(0))
    variance = averaged(np.square(values - mean).mean(0))
    # places that never change, as in black images, must not divide by zero
    least = 1e-2 * np.sqrt(variance.mean()) + 1e-6
    return {"mean": mean, "spread": np.maximum(np.sqrt(variance), least)}


def standardised(raw: Floats, standard: Arrays) -> Floats:
    """(map - mean) / spread at each place, (B, g, g)."""
    return np.asarray((raw - standard["mean"]) / standard["spread"])


def _standard_of(source: Source) -> str:
    """What the standard is stored under: one name for each way to make it, so that none is read as the other."""
    return "above_median" if source.above_median else "standard"


def less_median(maps: Tensor) -> Tensor:
    """Maps (B, g, g) less the median of each.

    The features' mean over the image is taken away before (`_grid`), their spread is not. So a rougher image is farther
    from the mean everywhere. What counts is how much farther one place is than the image as a whole.
    """
    return maps - maps.flatten(1).median(1).values[:, None, None]


def _raw_maps(features: FeatureCache, source: Source, fitted: Arrays) -> Floats:
    """The map before it is standardised, (B, g, g); computed once for these images and this density."""
    weights = without_prefix("weights", fitted)
    gaussians, mixture = without_prefix("place", fitted), without_prefix("anywhere", fitted)

    def read(images: Tensor) -> Tensor:
        projected = _project(_grid(images, source, weights), fitted)
        b, g, _, d = projected.shape
        if mixture:
            maps = densities.anywhere_nll(projected.reshape(b, g * g, d), mixture).reshape(b, g, g)
        else:
            maps = from_cells(densities.place_distance(to_cells(projected), gaussians), b, g)
        return less_median(maps) if source.above_median else maps

    # two fits on other images may have the same projection, which is made of the first of them
    arrays = (fitted["projection.mean"], *(part[name] for part in (gaussians, mixture) for name in sorted(part)))
    key = (source.name, hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest())
    return features.by_batch(("local map", *key), read)


def _grid(images: Tensor, source: Source, weights: Arrays) -> Tensor:
    """Local features less their mean over the image, (B, g, g, D).

    Images differ in light and texture as a whole, which would hide what is different at one place; `own_whole` looks at
    the mean. A few images at a time are read fastest: their maps stay in a core's cache.
    """
    maps = torch.cat([source.read(part, weights) for part in torch.split(images, AT_ONCE)])
    return (maps - maps.mean((2, 3), keepdim=True)).permute(0, 2, 3, 1)


def _batches(images: Images, most: int | None = None) -> Iterator[Tensor]:
    """The images, a few at a time; nothing else is in memory."""
    count, step = len(images) if most is None else min(most, len(images)), images_at_once(BATCH, images.shape[-1])
    with torch.inference_mode():
        for start in range(0, count, step):
            yield torch.from_numpy(np.array(images[start : min(start + step, count)]))


def _some_rows(training: list[Images], source: Source, weights: Arrays, seed: int) -> Floats:
    """Features at random places of PROJECTION_IMAGES training images, (N, D)."""
    generator = np.random.default_rng(seed)
    left, kept = PROJECTION_IMAGES, []
    share = PROJECTION_ROWS // min(left, sum(len(images) for images in training))
    for images in training:
        for batch in _batches(images, left):
            for image in _grid(batch, source, weights).flatten(1, 2).numpy():
                kept.append(image[generator.permutation(len(image))[:share]])
        left = PROJECTION_IMAGES - len(kept)
    return np.concatenate(kept)


def to_cells(features: Tensor) -> Tensor:
    """Features (B, g, g, D) by the Gaussian that they belong to: (B q q, P, D).

    On a grid of at most CELLS places a side q is 1. On a finer one, squares of q x q places share a Gaussian; what does
    not fill a square repeats the last places.
    """
    b, g, _, d = features.shape
    q = -(-g // CELLS)
    n = -(-g // q)
    index = torch.arange(n * q).clamp(max=g - 1)
    x = features[:, index][:, :, index].reshape(b, n, q, n, q, d)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b * q * q, n * n, d)


def from_cells(values: Tensor, b: int, g: int) -> Tensor:
    """What `to_cells` made of (B, g, g) places, one number each, back in its place: (B q q, P) -> (B, g, g)."""
    q = -(-g // CELLS)
    n = -(-g // q)
    return values.reshape(b, q, q, n, n).permute(0, 3, 1, 4, 2).reshape(b, n * q, n * q)[:, :g, :g]


def _fit_projection(rows: Floats, dimensions: int) -> Arrays:
    """Mean and leading principal components of standardised features (N, D): x -> (x - mean) @ axes.

    Where all components are kept, turning the features changes no density, so `axes` (D,) only standardises.
    """
    mean, spread = rows.mean(0, dtype=np.float64), rows.std(0, dtype=np.float64)
    spread = np.maximum(spread, 1e-6)
    axes = 1.0 / spread
    if dimensions < rows.shape[1]:
        standard = (rows - mean) / spread
        _, vectors = np.linalg.eigh(standard.T @ standard / len(rows))
        axes = vectors[:, ::-1][:, :dimensions] / spread[:, None]
    return {"mean": mean.astype(np.float32), "axes": np.ascontiguousarray(axes, dtype=np.float32)}


def _project(features: Tensor, fitted: Arrays) -> Tensor:
    """Features (..., D) on the principal components, (..., d)."""
    centred, axes = features - torch.as_tensor(fitted["projection.mean"]), torch.as_tensor(fitted["projection.axes"])
    return centred @ axes if axes.ndim == 2 else centred * axes


def _fit_places(data: FittingData, training: list[Images], source: Source, fitted: Arrays) -> Arrays:
    """A Gaussian for each place from one pass over the training images, shrunk as validation images want it."""
    weights = without_prefix("weights", fitted)

    def cells(batch: Tensor) -> Tensor:
        return to_cells(_project(_grid(batch, source, weights), fitted))

    moments: densities.PlaceMoments | None = None
    for images in training:
        for batch in _batches(images):
            x = cells(batch)
            moments = moments or densities.PlaceMoments(*x.shape[1:])
            moments.add(x)
    assert moments is not None
    validation = at_size(data.validation.source, data.validation.size)
    strength, gaussians = densities.choose_strength(moments, [cells(x) for x in _batches(validation, STRENGTH_IMAGES)])
    return {**gaussians, "strength": np.array([strength])}
