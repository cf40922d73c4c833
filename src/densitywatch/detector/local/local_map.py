"""A map of what is unexpected: local features, a density over them, and what normal images show at each place.

    projection    features standardised and on their leading principal components, from some training images
    code          what a picture shows as a whole, in a few numbers (picture_code.py), where the source wants it
    density       place: a Gaussian for each place, from all training and validation images in one pass. anywhere: one
                  mixture, from what the projection is from
    above_median  mean and spread at each place of the map less its median over the image, from validation images
    tail          how large the largest and the mean of the largest 1 % become, from validation images

With detector.tiles all of it is there twice: of the picture at detector.size, and of the picture at its own resolution,
read in tiles (tiles.py). A place of the one lies over several of the other, and the larger surprise counts.

A validation image's own map is that of the Gaussians without it (densities.left_out), so what it shows is what a new
image would. Calibration images take part in nothing, so that ranks among them stay valid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from densitywatch.arrays import Arrays, Floats
from densitywatch.data.reading import Images, at_size, images_at_once, images_within
from densitywatch.detector.feature_cache import FeatureCache
from densitywatch.detector.local import densities
from densitywatch.detector.local.map_rarity import (
    enlarged,
    fit_rarity,
    fit_standard,
    rarity,
    rarity_of_places,
    standardised,
)
from densitywatch.detector.local.picture_code import IMAGES, code_of, fit_code, part_means
from densitywatch.detector.local.sources import Source
from densitywatch.detector.local.tiles import read_in_tiles
from densitywatch.detector.member import FittingData, with_prefix, without_prefix
from densitywatch.detector.tail_combination import combined
from densitywatch.sizes import Size, as_size, height_width

Density = Literal["place", "anywhere"]
PROJECTION_IMAGES, PROJECTION_ROWS = 100, 60_000
"""Training images that the principal components, and the mixture, are taken from, and rows of them."""
STRENGTH_IMAGES = 64
"""Validation images that choose the shrinkage."""
CELLS = 32
"""Most places a side that have a Gaussian of their own; on a finer grid neighbours share one."""
PLACE = 8
"""Pixels a side of a place of the maps that are shown; features that lie farther apart are interpolated."""
LEAST_SPREAD = 1e-2
"""Spread of a feature that hardly changes, as a share of the median one, where features are standardised."""
FINE, TILE = "fine", "tile"
"""Prefix of what was fitted for the picture in tiles, and the key of their side in pixels."""
BATCH, AT_ONCE = 16, 4
"""Images whose features are in memory while a density is fitted, and images that a source reads at once."""


def fit_local(data: FittingData, source: Source, density: Density) -> Arrays:
    """Fit everything that `local_score` and `local_surprise` need."""
    weights = with_prefix("weights", source.weights())
    fitted = weights | _fit_view(data, source, density, weights)
    if data.tiles is not None:
        fine = _fit_view(data, source, density, weights | {TILE: np.array([data.tiles])})
        fitted |= with_prefix(FINE, fine | {TILE: np.array([data.tiles])})
    return fitted


def _fit_view(data: FittingData, source: Source, density: Density, fitted: Arrays) -> Arrays:
    """What one view of the pictures needs beside `fitted`: the weights, and the tiles' side where it has tiles."""
    source = _read_by(source, fitted)
    training = [at_size(cache.source, _size(cache, fitted)) for cache in (data.train, data.sample)]
    rows = _some_rows(training, source, fitted, data.seed)
    found = with_prefix("projection", _fit_projection(rows, source.dimensions))
    among = 0
    if density == "place":
        if source.of_picture is not None:
            found |= with_prefix("code", fit_code(_part_means(training, source, fitted)))
        places, among = _fit_places(data, training, source, fitted | found)
        found |= with_prefix("place", places)
    else:
        projected = _project(torch.from_numpy(rows), found).numpy()
        found |= with_prefix("anywhere", densities.anywhere_mixture(projected, data.seed))
    raw = _raw_maps(data.validation, source, fitted | found, among)
    standard = fit_standard(raw)
    found |= with_prefix("above_median", standard)
    return found | fit_rarity(standardised(raw, standard))


def _views(fitted: Arrays) -> list[Arrays]:
    """What was fitted for each view of a picture: as a whole, and in tiles where there are any."""
    fine = without_prefix(FINE, fitted)
    weights = {key: value for key, value in fitted.items() if key.startswith("weights.")}
    return [fitted, fine | weights] if fine else [fitted]


def local_map(features: FeatureCache, source: Source, fitted: Arrays) -> Floats:
    """Spreads by which each place is less probable than it is in normal images, (B, h, w), of one view.

    A place is `source.stride` pixels a side, of detector.size or, in tiles, of the picture.
    """
    # looked up before anything is computed: a detector of another version lacks it, and that is how it is told
    standard = {name: fitted[f"above_median.{name}"] for name in ("mean", "spread")}
    return standardised(_raw_maps(features, _read_by(source, fitted), fitted), standard)


def local_score(features: FeatureCache, source: Source, fitted: Arrays) -> Floats:
    """How rare the largest value of the map and the mean of its largest 1 % are among normal images, nats, (B,).

    With tiles the two views are combined as members are.
    """
    scores = [rarity(local_map(features, source, view), view) for view in _views(fitted)]
    return scores[0] if len(scores) == 1 else combined(scores)


def local_surprise(features: FeatureCache, source: Source, fitted: Arrays) -> Floats:
    """-log P(the largest value of a normal image's map is as high) at each place of PLACE pixels, nats, (B, h, w).

    So maps of several members are on one scale, and their maximum over members is one map. Most places are below the
    largest value of every normal image, where that is 0. There the result is negative: how far below, in spreads of the
    tail. Only the order of such values means something. With tiles the map has the places of the picture at its own
    resolution.
    """
    maps = []
    for view in _views(fitted):
        surprise = rarity_of_places(local_map(features, source, view), view, _read_by(source, view).stride / PLACE)
        down, across = (-(-side // PLACE) for side in height_width(_size(features, view)))
        maps.append(surprise[:, :down, :across])
    finest = np.max([each.shape[1:] for each in maps], axis=0)
    return np.asarray(np.max([enlarged(each, finest) for each in maps], axis=0))


def _size(features: FeatureCache, fitted: Arrays) -> Size:
    """The size at which this view reads pictures."""
    return features.source_size if TILE in fitted else features.size


def _read_by(source: Source, fitted: Arrays) -> Source:
    """The source that reads this view."""
    return source.in_tiles or source if TILE in fitted else source


def less_median(maps: Tensor) -> Tensor:
    """Maps (B, h, w) less the median of each.

    The features' mean over the image is taken away before (`_above_mean`), their spread is not. So a rougher image is
    farther from the mean everywhere. What counts is how much farther one place is than the image as a whole.
    """
    return maps - maps.flatten(1).median(1).values[:, None, None]


def _raw_maps(features: FeatureCache, source: Source, fitted: Arrays, among: int = 0) -> Floats:
    """The map before it is standardised, (B, h, w); computed once for these images and this density.

    `among`: the number of images that the Gaussians are from, where these are among them; each is then left out of its
    own. Whoever asks for the maps of the same `features` later gets these.
    """
    gaussians, mixture = without_prefix("place", fitted), without_prefix("anywhere", fitted)

    def surprise(grid: Tensor) -> Tensor:
        if mixture:
            projected = _project(_above_mean(grid), fitted)
            b, h, w, d = projected.shape
            maps = densities.anywhere_nll(projected.reshape(b, h * w, d), mixture).reshape(b, h, w)
        else:
            cells, code = _cells(grid, source, fitted)
            distance = densities.place_distance(cells, gaussians, code)
            if among:
                of_code = None if code is None else densities.code_distance(code, gaussians)
                distance = densities.left_out(distance, among, float(gaussians["strength"][0]), of_code)
            maps = from_cells(distance, (len(grid), grid.shape[2], grid.shape[3]))
        return less_median(maps)

    def read(images: Tensor) -> Tensor:
        return surprise(_maps(images, source, fitted))

    key = ("local map", TILE in fitted, source.name, _identity(fitted))
    if source.kept and TILE not in fitted:
        kept = kept_features(features, source, without_prefix("weights", fitted))
        return features.once(key, lambda: _in_parts(kept, surprise))
    return features.by_batch(key, read, _size(features, fitted))


def _identity(fitted: Arrays) -> str:
    """What tells one fit from another: their projections may be equal, as few images make them, their means are not."""
    names = ("projection.mean", "place.mean", "place.strength", "anywhere.mean")
    arrays = (np.ascontiguousarray(fitted[name]) for name in names if name in fitted)
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def kept_features(features: FeatureCache, source: Source, weights: Arrays) -> Floats:
    """Features of the images at `features.size`, (B, D, h, w), held in memory for all members that read them."""
    return features.by_batch(("local features", source.name), lambda images: _read_few(images, source, weights))


def _in_parts(kept: Floats, read: Callable[[Tensor], Tensor]) -> Floats:
    """`read` of a few of the features (B, D, h, w) at a time, joined."""
    with torch.inference_mode():
        return np.concatenate([read(part).numpy() for part in torch.split(torch.from_numpy(kept), BATCH)])


def _read_few(images: Tensor, source: Source, weights: Arrays) -> Tensor:
    """`source.read`, a few images at a time: that is fastest, as their maps stay in a core's cache."""
    return torch.cat([source.read(part, weights) for part in torch.split(images, AT_ONCE)])


def _above_mean(maps: Tensor) -> Tensor:
    """Features (B, D, h, w) less their mean over the image, (B, h, w, D).

    Images differ in light and texture as a whole, which would hide what is different at one place; `own_whole` and
    `lite0_whole` look at the mean.
    """
    return (maps - maps.mean((2, 3), keepdim=True)).permute(0, 2, 3, 1)


def _maps(images: Tensor, source: Source, fitted: Arrays) -> Tensor:
    """Local features of images as a view reads them, (B, D, h, w)."""
    weights = without_prefix("weights", fitted)
    if TILE not in fitted:
        return _read_few(images, source, weights)
    side = int(fitted[TILE][0])
    read = partial(read_in_tiles, side=side, stride=source.stride, read=lambda part: source.read(part, weights))
    return torch.cat([read(part) for part in torch.split(images, AT_ONCE)])


def image_means(features: FeatureCache, source: Source, weights: Arrays) -> Floats:
    """Mean over the image of each feature, (B, D). The means are kept; the features would fill the memory."""

    def compute() -> Floats:
        images = at_size(features.source, features.size)
        return np.concatenate([_read_few(batch, source, weights).mean((2, 3)).numpy() for batch in _batches(images)])

    return features.once(_means_key(source), compute)


def _means_key(source: Source) -> tuple[str, str]:
    return ("means of local features", source.name)


def _batches(images: Images, most: int | None = None) -> Iterator[Tensor]:
    """The images, a few at a time; nothing else is in memory."""
    count = len(images) if most is None else min(most, len(images))
    step = images_at_once(BATCH, as_size(*images.shape[2:]))
    with torch.inference_mode():
        for start in range(0, count, step):
            yield torch.from_numpy(np.array(images[start : min(start + step, count)]))


def _some_rows(training: list[Images], source: Source, fitted: Arrays, seed: int) -> Floats:
    """Features at random places of PROJECTION_IMAGES training images, (N, D)."""
    generator = np.random.default_rng(seed)
    left, kept = PROJECTION_IMAGES, []
    share = PROJECTION_ROWS // min(left, sum(len(images) for images in training))
    for images in training:
        for batch in _batches(images, left):
            for image in _above_mean(_maps(batch, source, fitted)).flatten(1, 2).numpy():
                kept.append(image[generator.permutation(len(image))[:share]])
        left = PROJECTION_IMAGES - len(kept)
    return np.concatenate(kept)


def sharing(h: int, w: int) -> int:
    """Side of the squares of places that share a Gaussian: the least with at most CELLS x CELLS of them."""
    q = 1
    while -(-h // q) * -(-w // q) > CELLS**2:
        q += 1
    return q


def to_cells(features: Tensor) -> Tensor:
    """Features (B, h, w, D) by the Gaussian that they belong to: (B q q, P, D).

    On a grid of at most CELLS x CELLS places q is 1. On a finer one, squares of q x q places share a Gaussian; what
    does not fill a square repeats the last places.
    """
    b, h, w, d = features.shape
    q = sharing(h, w)
    if q == 1:
        return features.reshape(b, h * w, d)
    n, m = -(-h // q), -(-w // q)
    rows, columns = torch.arange(n * q).clamp(max=h - 1), torch.arange(m * q).clamp(max=w - 1)
    x = features[:, rows][:, :, columns].reshape(b, n, q, m, q, d)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b * q * q, n * m, d)


def from_cells(values: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """What `to_cells` made of (B, h, w) places, one number each, back in its place: (B q q, P) -> (B, h, w)."""
    b, h, w = shape
    q = sharing(h, w)
    n, m = -(-h // q), -(-w // q)
    return values.reshape(b, q, q, n, m).permute(0, 3, 1, 4, 2).reshape(b, n * q, m * q)[:, :h, :w]


def _cells(features: Tensor, source: Source, fitted: Arrays) -> tuple[Tensor, Tensor | None]:
    """Features (B, D, h, w) as the places' Gaussians take them, and the codes of their pictures where these count."""
    cells, fitted_code = to_cells(_project(_above_mean(features), fitted)), without_prefix("code", fitted)
    if not fitted_code:
        return cells, None
    code = code_of(features[:, source.of_picture], fitted_code)
    return cells, code.repeat_interleave(len(cells) // len(code), 0)


def _part_means(training: list[Images], source: Source, fitted: Arrays) -> Floats:
    """What the codes of the first training images are made of, (N, M)."""
    rows: list[Floats] = []
    for images in training:
        for batch in _batches(images, IMAGES - len(rows)):
            rows.extend(part_means(_maps(batch, source, fitted)[:, source.of_picture]).numpy())
    return np.stack(rows)


def _fit_projection(rows: Floats, dimensions: int) -> Arrays:
    """Mean and leading principal components of standardised features (N, D): x -> (x - mean) @ axes.

    Where all components are kept, turning the features changes no density, so `axes` (D,) only standardises.
    """
    mean, spread = rows.mean(0, dtype=np.float64), rows.std(0, dtype=np.float64)
    # a feature that hardly changes, as the colours of grey pictures, would be all that a density sees once it does
    spread = np.maximum(spread, LEAST_SPREAD * np.median(spread) + 1e-6)
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


def _fit_places(data: FittingData, training: list[Images], source: Source, fitted: Arrays) -> tuple[Arrays, int]:
    """A Gaussian for each place, shrunk as validation images want it, and the number of images among which they are.

    The moments are those of the training images in one pass, and then of the validation images as well. The number is 0
    where they are not. Places that share a Gaussian have enough images without them, and more than one place of an
    image would have to be left out; of several images of a scene, all others would have to be.
    """

    kept = source.kept and TILE not in fitted
    moments: densities.PlaceMoments | None = None
    for cache, images in zip((data.train, data.sample), training, strict=True):
        means = []
        for batch in _batches(images):
            maps = _maps(batch, source, fitted)
            if kept:
                means.append(maps.mean((2, 3)).numpy())
            x, code = _cells(maps, source, fitted)
            moments = moments or densities.PlaceMoments(x.shape[1], x.shape[2], 0 if code is None else code.shape[1])
            moments.add(x, code)
        if means:  # for a member of the means: the images are read once for both
            cache.once(_means_key(source), partial(np.concatenate, means))
    assert moments is not None
    validation = at_size(data.validation.source, _size(data.validation, fitted))
    h, w = (-(-side // source.stride) for side in validation.shape[2:])
    few = images_within(STRENGTH_IMAGES, 4 * h * w * source.dimensions)

    def held_out(most: int | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        if kept:
            features = kept_features(data.validation, source, without_prefix("weights", fitted))[:most]
            yield from (_cells(part, source, fitted) for part in torch.split(torch.from_numpy(features), BATCH))
        else:
            yield from (_cells(_maps(batch, source, fitted), source, fitted) for batch in _batches(validation, most))

    strength, gaussians = densities.choose_strength(moments, list(held_out(few)))
    if data.grouped or sharing(h, w) > 1:
        return {**gaussians, "strength": np.array([strength])}, 0
    with torch.inference_mode():  # the moments were made in it
        for x, code in held_out(None):
            moments.add(x, code)
    return {**densities.place_gaussian(moments, strength), "strength": np.array([strength])}, moments.count
