"""Local defects, made of a set's own images: what does not belong, where nobody has foreign images or labels.

Cut and paste and its thin form, the scar, are those of Li et al. (2021), "CutPaste: self-supervised learning for
anomaly detection and localization". Every size is a share of the image, so 16 and 1,024 pixels get the same defects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from densitywatch.arrays import Floats, Pixels

AREA = (0.02, 0.1)
"""Least and largest share of the image that a rectangle covers."""
LENGTH, WIDTH = (0.25, 0.6), (0.01, 0.03)
"""Of a scar or a scratch, as shares of the image's side. A width is at least one pixel."""
LINE_AREA = 0.05
"""Largest share of the image that a scar or a scratch covers."""
WINDING = 1.5
"""Standard deviation in radians of the angle by which a scratch has turned at its end."""
BLUR = 0.03
"""Standard deviation of the blur as a share of the image's side, at least MIN_BLUR pixels."""
MIN_BLUR = 0.8
SHIFT = (0.5, 1.5)
"""Change of brightness in standard deviations of the set's pixels."""
VISIBLE = 0.1
"""Least mean change of the pixels of a defect, in the same unit; at least MIN_CHANGE of 255."""
MIN_CHANGE = 2.0
TRIES = 30
"""Number of places that are tried for a defect that shows."""
LOOKED_AT, GRID = 100, 64
"""Numbers of images, and of rows and columns of each at most, from which a set's shades are taken."""


@dataclass(frozen=True)
class Shades:
    """The shades of a set of images."""

    dark: Floats
    bright: Floats
    """The 1st and 99th percentile of each channel, (C,)."""
    spread: float
    """Standard deviation within a channel."""


@dataclass(frozen=True)
class Spot:
    """A defect before it is put into an image: its box, which pixels of the box it changes, and to what."""

    top: int
    left: int
    mask: NDArray[np.bool_]
    """(h, w)"""
    values: Floats | Pixels
    """(C, h, w), or what broadcasts to that."""


Draw = Callable[[Pixels, Pixels, Shades, np.random.Generator], Spot]
"""Draws a defect for an image (C, H, W); the second image is another one of the set."""


def patch(image: Pixels, other: Pixels, shades: Shades, rng: np.random.Generator) -> Spot:
    """A rectangle from another place of the image or from another image."""
    h, w = rectangle(image, rng)
    top, left = place(image, h, w, rng)
    return Spot(top, left, np.ones((h, w), bool), piece(image, other, h, w, rng))


def scar(image: Pixels, other: Pixels, shades: Shades, rng: np.random.Generator) -> Spot:
    """A thin rectangle at any angle, filled with pixels from another place or another image."""
    length, width = line(image, rng)
    angle = rng.uniform(0, np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    h = min(image.shape[1], int(np.ceil(length * abs(sin) + width * abs(cos))))
    w = min(image.shape[2], int(np.ceil(length * abs(cos) + width * abs(sin))))
    y, x = np.mgrid[:h, :w].astype(float) - np.array([h - 1, w - 1]).reshape(2, 1, 1) / 2
    mask = (np.abs(x * cos + y * sin) <= length / 2) & (np.abs(y * cos - x * sin) <= width / 2)
    top, left = place(image, h, w, rng)
    return Spot(top, left, mask, piece(image, other, h, w, rng))


def scratch(image: Pixels, other: Pixels, shades: Shades, rng: np.random.Generator) -> Spot:
    """A thin line along a random walk, as dark or as bright as the set's images get."""
    length, width = line(image, rng)
    steps = max(2, round(2 * length))  # half a pixel each, so that the line has no gaps
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, WINDING / np.sqrt(steps), steps))
    walk = np.cumsum(0.5 * np.stack([np.sin(heading), np.cos(heading)]), 1)
    points = np.rint(walk - walk.min(1, keepdims=True)).astype(int)
    h, w = np.minimum(points.max(1) + width, image.shape[1:])
    mask = np.zeros((h, w), bool)
    for down in range(width):
        for right in range(width):
            mask[np.minimum(points[0] + down, h - 1), np.minimum(points[1] + right, w - 1)] = True
    top, left = place(image, h, w, rng)
    shade = shades.dark if rng.random() < 0.5 else shades.bright
    return Spot(top, left, mask, shade[:, None, None])


def blur(image: Pixels, other: Pixels, shades: Shades, rng: np.random.Generator) -> Spot:
    """A rectangle that is out of focus."""
    h, w = rectangle(image, rng)
    top, left = place(image, h, w, rng)
    sigma = max(MIN_BLUR, BLUR * min(image.shape[1:]))
    margin = int(np.ceil(3 * sigma))  # pixels around the rectangle count in the blur
    above, before = min(margin, top), min(margin, left)
    around = image[:, top - above : top + h + margin, left - before : left + w + margin].astype(np.float32)
    blurred = ndimage.gaussian_filter(around, (0, sigma, sigma), mode="nearest", truncate=3)
    return Spot(top, left, np.ones((h, w), bool), blurred[:, above : above + h, before : before + w])


def erased(image: Pixels, other: Pixels, shades: Shades, rng: np.random.Generator) -> Spot:
    """A rectangle filled with the mean of the pixels around its border."""
    h, w = rectangle(image, rng)
    top, left = place(image, h, w, rng)
    rows, columns = slice(max(0, top - 1), top + h + 1), slice(max(0, left - 1), left + w + 1)
    ring = np.ones(image.shape[1:], bool)[rows, columns]
    ring[top - rows.start : top - rows.start + h, left - columns.start : left - columns.start + w] = False
    mean = image[:, rows, columns][:, ring].mean(1)
    return Spot(top, left, np.ones((h, w), bool), mean[:, None, None])


def brightness(image: Pixels, other: Pixels, shades: Shades, rng: np.random.Generator) -> Spot:
    """An ellipse that is lighter or darker, most of all in its middle."""
    h, w = rectangle(image, rng)
    top, left = place(image, h, w, rng)
    y, x = (np.arange(h) + 0.5) / h * 2 - 1, (np.arange(w) + 0.5) / w * 2 - 1
    weight = 1 - y[:, None] ** 2 - x[None] ** 2
    shift = rng.choice([-1.0, 1.0]) * rng.uniform(*SHIFT) * shades.spread
    return Spot(top, left, weight > 0, image[:, top : top + h, left : left + w] + shift * weight)


DEFECTS: dict[str, tuple[Draw, float]] = {
    "patch": (patch, AREA[1]),
    "scar": (scar, LINE_AREA),
    "scratch": (scratch, LINE_AREA),
    "blurred_part": (blur, AREA[1]),
    "erased_part": (erased, AREA[1]),
    "brightness_of_a_part": (brightness, AREA[1]),
}
"""Kind of defect -> how it is drawn, and the largest share of the image that it touches (or one pixel)."""


def with_defects(images: Pixels, seed: int) -> dict[str, Pixels]:
    """Kind of defect -> the images (N, C, H, W) with one such defect each; without the kinds that show in no image."""
    made = {kind: spoiled(images, kind, seed)[0] for kind in DEFECTS}
    return {kind: copies for kind, copies in made.items() if len(copies)}


def spoiled(images: Pixels, kind: str, seed: int) -> tuple[Pixels, NDArray[np.int64]]:
    """Copies of uint8 images (N, C, H, W) with one defect of `kind` each, and the numbers of the images in the set.

    An image in which none of TRIES places gives a defect that shows is left out: nothing is blurred in an even surface,
    and a black rectangle pasted on black is no defect. The same images and the same seed give the same bytes.
    """
    draw, most = DEFECTS[kind]
    rng = np.random.default_rng([seed, list(DEFECTS).index(kind)])
    shades = shades_of(images)
    limit = max(1, int(most * images.shape[2] * images.shape[3]))
    copies, rows = images.copy(), []
    for i in range(len(images)):
        other = images[(i + rng.integers(1, max(2, len(images)))) % len(images)]
        for _ in range(TRIES):
            if put(copies[i], draw(images[i], other, shades, rng), limit, shades):
                rows.append(i)
                break
    return copies[rows], np.array(rows, dtype=np.int64)


def put(image: Pixels, spot: Spot, limit: int, shades: Shades) -> bool:
    """Put a defect into the image in place and return True, if it shows and touches at most `limit` pixels."""
    h, w = spot.mask.shape
    part = image[:, spot.top : spot.top + h, spot.left : spot.left + w]
    new = np.where(spot.mask, np.clip(np.rint(spot.values), 0, 255), part).astype(np.uint8)
    changed = np.abs(new.astype(int) - part).max(0)
    touched = int(spot.mask.sum())
    least = max(MIN_CHANGE, VISIBLE * shades.spread)
    if not 0 < touched <= limit:
        return False
    # half of it differs, and by enough on average: a sliver of a patch is not the defect that was drawn
    if np.median(changed[spot.mask]) == 0 or changed[spot.mask].mean() < least:
        return False
    part[:] = new
    return True


def shades_of(images: Pixels) -> Shades:
    """The shades of the first LOOKED_AT images."""
    down, right = (-(-side // GRID) for side in images.shape[2:])
    some = images[:LOOKED_AT, :, ::down, ::right]
    dark, bright = np.percentile(some, [1, 99], axis=(0, 2, 3))
    return Shades(dark, bright, float(np.sqrt(some.var(axis=(0, 2, 3), dtype=np.float64).mean())))


def rectangle(image: Pixels, rng: np.random.Generator) -> tuple[int, int]:
    """Height and width of a rectangle of an area in AREA, at most three times as long as wide."""
    height, width = image.shape[1:]
    area = np.exp(rng.uniform(*np.log(AREA))) * height * width
    h = int(np.clip(np.rint(np.sqrt(area * 3 ** rng.uniform(-1, 1))), 1, height))
    return h, int(np.clip(np.rint(area / h), 1, max(1, min(width, AREA[1] * height * width // h))))


def line(image: Pixels, rng: np.random.Generator) -> tuple[float, int]:
    """Length and width of a thin line, in pixels."""
    side = min(image.shape[1:])
    return rng.uniform(*LENGTH) * side, max(1, round(rng.uniform(*WIDTH) * side))


def place(image: Pixels, h: int, w: int, rng: np.random.Generator) -> tuple[int, int]:
    """Top and left of a box of h x w somewhere in the image."""
    return int(rng.integers(0, image.shape[1] - h + 1)), int(rng.integers(0, image.shape[2] - w + 1))


def piece(image: Pixels, other: Pixels, h: int, w: int, rng: np.random.Generator) -> Pixels:
    """A box of h x w from somewhere in the image or, as often, in the other one: (C, h, w)."""
    source = image if rng.random() < 0.5 else other
    top, left = place(source, h, w, rng)
    return source[:, top : top + h, left : left + w]
