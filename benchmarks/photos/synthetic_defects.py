"""Defects made of good images, to choose by: a piece of another image, a scar, blur, a blank, a spot, a shade.

Three more are faint and long or large: a stain of an eighth to a third of the picture, a thin line from edge to edge, a
straight band from edge to edge. Two are of the whole picture: dimmer by 8 to 25 %, and out of focus by a radius of 0.7
to 1.5 pixels.

They are made of images of train/good alone. What was chosen by them: docs/decisions/0033, 0041, 0045, 0046 and 0049.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter

from densitywatch.arrays import Floats, Pixels

Mask = NDArray[np.bool_]

SHARPEST = 1.0
"""Pixels, the standard deviation of what a point looks like in a sharp photograph, about."""


def synthetic_defects(images: Pixels, seed: int, *, camera: bool = False) -> dict[str, Pixels]:
    """Each kind of defect, once on each of the images (N, C, H, W).

    With `camera` a defect was before the camera: no change is sharper than a camera shows, and what is finer, the
    camera's noise above all, stays that of the image. So the defect is made on a smoothed image, and what it changes
    there, smoothed again, is added to the image itself. Without, edges are as sharp as arithmetic makes them, and a
    pasted, blurred or erased part has no noise of its own: a model that reads single pixels is misled by both.
    """
    generator = np.random.default_rng(seed)
    others = generator.permutation(len(images))
    before = _rounded(_smoothed(images)) if camera else images
    found = {}
    for name, put in KINDS.items():
        changed = np.stack([put(x, before[other], generator) for x, other in zip(before, others, strict=True)])
        found[name] = _rounded(images + _smoothed(changed - before)) if camera else _rounded(changed)
    return found


def _smoothed(images: Pixels | Floats) -> Floats:
    return np.asarray(gaussian_filter(images.astype(np.float32), (0, 0, SHARPEST, SHARPEST)))


def _rounded(image: Floats) -> Pixels:
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def _paste(image: Pixels, other: Pixels, generator: np.random.Generator) -> Floats:
    """A part of another image, from another place of it."""
    x, mask = image.astype(np.float32), _blob(image, generator, generator.uniform(5, 28))
    away = generator.integers(20, image.shape[1] - 20, 2)
    x[:, mask] = np.roll(other.astype(np.float32), away, (1, 2))[:, mask]
    return x


def _scar(image: Pixels, other: Pixels, generator: np.random.Generator) -> Floats:
    """A thin crooked line, lighter or darker."""
    x, mask = image.astype(np.float32), _line(image, generator)
    x[:, mask] += generator.choice([-1, 1]) * generator.uniform(25, 90)
    return x


def _blur(image: Pixels, other: Pixels, generator: np.random.Generator) -> Floats:
    """A part out of focus."""
    x, mask = image.astype(np.float32), _blob(image, generator, generator.uniform(5, 28))
    radius = generator.uniform(2, 5)
    x[:, mask] = np.stack([_gaussian(plane, radius) for plane in image])[:, mask]
    return x


def _erased(image: Pixels, other: Pixels, generator: np.random.Generator) -> Floats:
    """A part in about its own mean colour."""
    x, mask = image.astype(np.float32), _blob(image, generator, generator.uniform(5, 28))
    x[:, mask] = x[:, mask].mean(1, keepdims=True) + generator.normal(0, 5, (len(x), 1))
    return x


def _spot(image: Pixels, other: Pixels, generator: np.random.Generator) -> Floats:
    """A few pixels, much lighter or darker."""
    x, mask = image.astype(np.float32), _blob(image, generator, generator.uniform(2, 5))
    x[:, mask] += generator.choice([-1, 1]) * generator.uniform(30, 110)
    return x


def _shade(image: Pixels, other: Pixels, generator: np.random.Generator) -> Floats:
    """A part with soft edges, lighter or darker by 15 to 50 %."""
    mask = _blob(image, generator, generator.uniform(5, 28))
    soft = _gaussian(mask.astype(np.uint8) * 255, 4) / 255.0
    change = 1 + soft * generator.choice([-1, 1]) * generator.uniform(0.15, 0.5)
    return np.asarray(image * change, dtype=np.float32)


def _stain(image: Pixels, other: Pixels, generator: np.random.Generator) -> Floats:
    """A large part with soft edges, lighter or darker by 8 to 25 %."""
    mask = _blob(image, generator, generator.uniform(30, 90))
    return _shaded(image, _gaussian(mask.astype(np.uint8) * 255, 8) / 255.0, generator)


def _long_line(image: Pixels, other: Pixels, generator: np.random.Generator) -> Floats:
    """A thin crooked line from edge to edge, lighter or darker by 8 to 25 %."""
    h, w = image.shape[1:]
    y, x = np.mgrid[:h, :w]
    angle, width = generator.uniform(0, np.pi), generator.uniform(0.7, 1.6)
    along, across = _turned(y, x, image, generator, angle)
    # what the line is away from straight: a random walk in steps of 16 pixels
    walk = np.cumsum(generator.normal(0, 2.5, 2 * (h + w) // 16 + 2))
    crooked = np.interp(along + h + w, np.arange(len(walk)) * 16, walk - walk[len(walk) // 2])
    return _shaded(image, (np.abs(across - crooked) < width).astype(np.float32), generator)


def _band(image: Pixels, other: Pixels, generator: np.random.Generator) -> Floats:
    """A straight band of 3 to 12 pixels from edge to edge at any angle, lighter or darker by 8 to 25 %."""
    h, w = image.shape[1:]
    y, x = np.mgrid[:h, :w]
    angle = generator.choice([0.0, np.pi / 2, generator.uniform(0, np.pi)])
    _, across = _turned(y, x, image, generator, angle)
    return _shaded(image, (np.abs(across) < generator.uniform(1.5, 6)).astype(np.float32), generator)


def _turned(y: Floats, x: Floats, image: Pixels, generator: np.random.Generator, angle: float) -> tuple[Floats, Floats]:
    """Pixels along and across a line of this angle through a random place in the middle of the image."""
    h, w = image.shape[1:]
    cy, cx = generator.uniform(0.2, 0.8, 2) * (h, w)
    dx, dy = x - cx, y - cy
    return dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)


def _shaded(image: Pixels, where: Floats, generator: np.random.Generator) -> Floats:
    """Lighter or darker by 8 to 25 % where `where` is 1."""
    change = 1 + where * generator.choice([-1, 1]) * generator.uniform(0.08, 0.25)
    return np.asarray(image * change, dtype=np.float32)


def _dim(image: Pixels, other: Pixels, generator: np.random.Generator) -> Floats:
    """The whole picture darker."""
    return np.asarray(image * (1 - generator.uniform(0.08, 0.25)), dtype=np.float32)


def _defocus(image: Pixels, other: Pixels, generator: np.random.Generator) -> Floats:
    """The whole picture out of focus."""
    radius = generator.uniform(0.7, 1.5)
    return np.stack([_gaussian(plane, radius) for plane in image])


KINDS: dict[str, Callable[[Pixels, Pixels, np.random.Generator], Floats]] = {
    "paste": _paste,
    "scar": _scar,
    "blur": _blur,
    "erased": _erased,
    "spot": _spot,
    "shade": _shade,
    "stain": _stain,
    "long line": _long_line,
    "band": _band,
    "dim": _dim,
    "defocus": _defocus,
}


def _gaussian(plane: Pixels, radius: float) -> Floats:
    return np.asarray(Image.fromarray(plane).filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32)


def _blob(image: Pixels, generator: np.random.Generator, size: float) -> Mask:
    """Four overlapping ellipses of about this size somewhere in the middle of the image."""
    h, w = image.shape[1:]
    y, x = np.mgrid[:h, :w]
    cy, cx = generator.uniform(0.2, 0.8, 2) * (h, w)
    mask = np.zeros((h, w), bool)
    for _ in range(4):
        a, b = generator.uniform(0.3, 1.0, 2) * size
        angle = generator.uniform(0, np.pi)
        dy, dx = y - cy - generator.normal() * size * 0.4, x - cx - generator.normal() * size * 0.4
        along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
        mask |= (along / a) ** 2 + (across / b) ** 2 < 1
    if not mask.any():
        mask[int(cy), int(cx)] = True
    return mask


def _line(image: Pixels, generator: np.random.Generator) -> Mask:
    """A line of 20 to 90 pixels that turns a little at every step."""
    h, w = image.shape[1:]
    y, x = np.mgrid[:h, :w]
    cy, cx = generator.uniform(0.2, 0.8, 2) * (h, w)
    angle, width = generator.uniform(0, 2 * np.pi), generator.uniform(0.7, 2.2)
    mask = np.zeros((h, w), bool)
    for _ in range(int(generator.integers(20, 90))):
        angle += generator.normal() * 0.15
        cy, cx = cy + np.sin(angle), cx + np.cos(angle)
        mask |= (y - cy) ** 2 + (x - cx) ** 2 < width**2
    return mask
