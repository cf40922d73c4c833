"""Kinds of outliers that no choice was made on: evaluated once, at the end, by sealed_panel.py.

None of them is on the benchmark's panel or among the synthetic outliers of choice_of_members.py. Written down before
the members were chosen (docs/lab/detector.md, "A fourth choice").
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from sklearn.datasets import load_digits, load_sample_images

from densitywatch.arrays import Pixels
from densitywatch.data.reading import resized


def sealed_kinds(images: Pixels, seed: int = 0) -> dict[str, Pixels]:
    """Outliers by name, each uint8 (N, 1, H, W), made of grey images or, for foreign ones, of their size."""
    rng = np.random.default_rng(seed)
    n, _, height, width = images.shape
    floats, other = images.astype(np.float32), rng.permutation(n)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    result: dict[str, NDArray[np.generic]] = {
        "elastic deformation": _moved(images, _waves(rng, n, height, width, 2.5), _waves(rng, n, height, width, 2.5)),
        "swirl": _swirled(images, 1.2),
        "specks": _specks(images, rng, 0.02),
        "bar in front": _bars(images, rng),
        "dead rows": np.where(rng.random((n, 1, height, 1)) < 0.12, 0, images),
        "diagonal halves of two": np.where(rows > columns, floats, floats[other]),
        "chequered of two": np.where((rows // 4 + columns // 4) % 2 == 0, floats, floats[other]),
        "jpeg": np.stack([_as_jpeg(image[0], 12)[None] for image in images]),
        "motion blur": ndimage.uniform_filter1d(floats, 4, axis=-1),
        "coarse pixels": np.repeat(np.repeat(floats[:, :, ::2, ::2], 2, -2), 2, -1)[:, :, :height, :width],
        "four shades": np.rint(floats / 85) * 85,
        "stripes over it": floats + 18 * np.sin(2 * np.pi * columns / 5),
        "light from the left": floats + 40 * (1 - columns / width),
        "outlines": 2 * np.hypot(np.gradient(floats, axis=-1), np.gradient(floats, axis=-2)),
        "pixels shuffled nearby": _moved(images, *rng.integers(-1, 2, (2, n, height, width)).astype(np.float32)),
        "own shades as texture": _own_shades(images, rng),
        "digits of a scanner": _digits(rng, n, height),
        "letters": np.stack([_letter(rng, height) for _ in range(n)])[:, None],
        "photographs": _photographs(rng, n, height),
    }
    return {name: np.clip(np.rint(values), 0, 255).astype(np.uint8) for name, values in result.items()}


def _waves(rng: np.random.Generator, n: int, height: int, width: int, size: float) -> NDArray[np.float32]:
    """Smooth random fields (N, H, W) with a standard deviation of about `size` / 2 pixels (Simard et al. 2003)."""
    field = ndimage.gaussian_filter(rng.normal(size=(n, height, width)), (0, 3, 3))
    return np.asarray(field / field.std() * size / 2, dtype=np.float32)


def _moved(images: Pixels, down: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every pixel taken from `down` rows and `right` columns away, (N, H, W) each."""
    rows, columns = np.mgrid[: images.shape[2], : images.shape[3]]
    moved = [
        ndimage.map_coordinates(image[0].astype("f4"), [rows + d, columns + r], order=1)
        for image, d, r in zip(images, down, right, strict=True)
    ]
    return np.stack(moved)[:, None]


def _swirled(images: Pixels, turn: float) -> NDArray[np.float32]:
    """Turned by `turn` radians in the middle and by less further out."""
    height, width = images.shape[2:]
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    y, x = rows - (height - 1) / 2, columns - (width - 1) / 2
    angle = turn * np.exp(-np.hypot(x, y) / (height / 4))
    down = np.sin(angle) * x + np.cos(angle) * y - y
    right = np.cos(angle) * x - np.sin(angle) * y - x
    shape = (len(images), height, width)
    return _moved(images, np.broadcast_to(down, shape), np.broadcast_to(right, shape))


def _specks(images: Pixels, rng: np.random.Generator, share: float) -> Pixels:
    """A share of the pixels black or white."""
    drawn = rng.random(images.shape)
    return np.where(drawn < share / 2, 0, np.where(drawn < share, 255, images)).astype(np.uint8)


def _bars(images: Pixels, rng: np.random.Generator) -> Pixels:
    """A bar of one shade, three pixels wide, from edge to edge in front of the image."""
    result = images.copy()
    for image in result:
        at = int(rng.integers(image.shape[1] // 4, image.shape[1] * 3 // 4))
        if rng.random() < 0.5:
            image[:, at : at + 3] = rng.integers(0, 256)
        else:
            image[:, :, at : at + 3] = rng.integers(0, 256)
    return result


def _as_jpeg(image: Pixels, quality: int) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def _own_shades(images: Pixels, rng: np.random.Generator) -> NDArray[np.generic]:
    """A smooth random texture that has exactly the shades of the image (ranks are matched)."""
    n, _, height, width = images.shape
    texture = ndimage.gaussian_filter(rng.normal(size=(n, height, width)), (0, 1.5, 1.5)).reshape(n, -1)
    ranks = texture.argsort(1).argsort(1)
    return np.take_along_axis(np.sort(images.reshape(n, -1), 1), ranks, 1).reshape(images.shape)


def _digits(rng: np.random.Generator, n: int, size: int) -> Pixels:
    """Handwritten digits of 8 x 8 pixels in 17 shades (Alpaydin & Kaynak 1998), drawn larger."""
    digits = load_digits().images[rng.integers(0, 1797, n)]
    return resized(np.asarray(digits * 15.9, dtype=np.uint8)[:, None], size)


def _letter(rng: np.random.Generator, size: int) -> Pixels:
    """A printed capital letter, white on black, in the middle."""
    picture = Image.new("L", (size, size))
    font = ImageFont.load_default(float(rng.uniform(0.6, 1.0) * size))
    letter = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[rng.integers(26)]
    ImageDraw.Draw(picture).text((size / 2, size / 2), letter, fill=int(rng.integers(120, 256)), font=font, anchor="mm")
    return np.asarray(picture)


def _photographs(rng: np.random.Generator, n: int, size: int) -> Pixels:
    """Grey squares of scikit-learn's two photographs, at half their resolution."""
    photographs = [image.mean(2)[::2, ::2] for image in load_sample_images().images]
    cut = []
    for _ in range(n):
        photograph = photographs[rng.integers(2)]
        y, x = rng.integers(0, photograph.shape[0] - size), rng.integers(0, photograph.shape[1] - size)
        cut.append(photograph[y : y + size, x : x + size])
    return np.asarray(np.stack(cut), dtype=np.uint8)[:, None]
