"""How the outlier detector's members were chosen: AUROC on synthetic outliers made of validation images.

    python benchmarks/detector/choice_of_members.py [IMAGES]

Every score is fitted as `densitywatch calibrate` would, on training images and the first half of the validation
images. It is measured on the second half against the same images spoiled by operations that are not on the panel
(docs/lab/detector.md). Neither test images nor the panel are read. Prints one row for each score, then sums with one
score more or less, a rival rule of combination, and the gradients with other numbers of components.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from densitywatch.arrays import Floats, Pixels
from densitywatch.detector.calibrate import fit_member, fitting_data
from densitywatch.detector.feature_cache import FeatureCache
from densitywatch.detector.member_table import MEMBERS
from densitywatch.detector.scores.arrangement import fit_gradient_arrangement, gradient_arrangement
from densitywatch.detector.tail_combination import combined, fit_tail, tail_surprise
from densitywatch.errors import ModelError
from densitywatch.outlier_benchmark.auroc import auroc
from densitywatch.params import load_params

GRADIENTS = ((64, 80), (150, 80), (100, 30), (100, 160))
"""Principal components and mixture components, instead of the 100 and 80 of gradient_arrangement."""


def spoiled(images: Pixels, seed: int = 0) -> dict[str, Pixels]:
    """Synthetic outliers by name, each uint8 (N, C, H, W); none of them is on the panel."""
    rng = np.random.default_rng(seed)
    n, _, height, width = images.shape
    h, w = height // 2, width // 2
    floats, other = images.astype(np.float32), rng.permutation(n)
    left, right, top, bottom = images[..., :w], images[..., w:], images[..., :h, :], images[..., h:, :]
    result: dict[str, NDArray[np.generic]] = {
        "shift right by 1": shifted(images, 0, 1),
        "shift left by 1": shifted(images, 0, -1),
        "shift down by 3": shifted(images, 3, 0),
        "rotate by 10": bent(images, rotation(10)),
        "rotate by -10": bent(images, rotation(-10)),
        "rotate by 45": bent(images, rotation(45)),
        "shear": bent(images, np.array([[1, 0], [0.2, 1]])),
        "zoom out": bent(images, np.diag([1.2, 1.2])),
        "zoom in": bent(images, np.diag([0.85, 0.85])),
        "left and right swapped": np.concatenate([right, left], -1),
        "top and bottom swapped": np.concatenate([bottom, top], -2),
        "right half mirrors left": np.concatenate([left, left[..., ::-1]], -1),
        "left half mirrors right": np.concatenate([right[..., ::-1], right], -1),
        "bottom half mirrors top": np.concatenate([top, top[..., ::-1, :]], -2),
        "top half mirrors bottom": np.concatenate([bottom[..., ::-1, :], bottom], -2),
        "halves of two, left and right": np.concatenate([left, right[other]], -1),
        "halves of two, top and bottom": np.concatenate([top, bottom[other]], -2),
        "mean of two": (floats + floats[other]) / 2,
        "blur": ndimage.gaussian_filter(floats, (0, 0, 0.7, 0.7)),
        "sharpen": 1.7 * floats - 0.7 * ndimage.gaussian_filter(floats, (0, 0, 1, 1)),
        "noise": floats + rng.normal(0, 6, floats.shape),
        "lower contrast": floats * 0.7,
        "other gamma": 255 * (floats / 255) ** 1.5,
    }
    erased, foreign = images.copy(), images.copy()
    side = max(2, height // 4)
    for i in range(n):
        y, x = rng.integers(side // 2, height - side - side // 2), rng.integers(side // 2, width - side - side // 2)
        erased[i, :, y : y + side, x : x + side] = 0
        foreign[i, :, y : y + side, x : x + side] = images[other[i], :, y : y + side, x : x + side]
    quarters = np.stack([top[..., :w], top[..., w : 2 * w], bottom[..., :h, :w], bottom[..., :h, w : 2 * w]], 1)
    drawn = quarters[np.arange(n)[:, None], np.argsort(rng.random((n, 4)), 1)]
    rows = [np.concatenate([drawn[:, 0], drawn[:, 1]], -1), np.concatenate([drawn[:, 2], drawn[:, 3]], -1)]
    result |= {"patch erased": erased, "patch of another": foreign, "quarters shuffled": np.concatenate(rows, -2)}
    return {name: as_pixels(values) for name, values in (result | extreme(images, seed)).items()}


def extreme(images: Pixels, seed: int = 0) -> dict[str, NDArray[np.generic]]:
    """Outliers far outside of what normal images are made of, by name; none of them is on the panel."""
    rng = np.random.default_rng(seed + 1)
    n, _, height, width = images.shape
    floats = images.astype(np.float32)
    rows, columns = np.mgrid[:height, :width]
    noisy, shuffled = floats.copy(), images.reshape(n, -1).copy()
    side = max(2, height * 2 // 5)
    for image, pixels in zip(noisy, shuffled, strict=True):
        y, x = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
        image[:, y : y + side, x : x + side] = rng.integers(0, 256, (len(image), side, side))
        rng.shuffle(pixels)
    angle, period = rng.uniform(0, np.pi, (n, 1, 1, 1)), rng.uniform(3, 12, (n, 1, 1, 1))
    smooth = ndimage.gaussian_filter(rng.normal(size=images.shape), (0, 0, 1, 1))
    amplitude = rng.integers(40, 256, (n, 1, 1, 1))
    return {
        "patch of strong noise": noisy,
        "strong noise over it": floats + rng.normal(0, 60, floats.shape),
        "black and white": np.where(images > 64, 255, 0),
        "four times as bright": floats * 4,
        "pixels shuffled": shuffled.reshape(images.shape),
        "chequers": np.broadcast_to((rows + columns) % 2, images.shape) * amplitude,
        "stripes": 127.5 + 127.5 * np.sin(2 * np.pi * (columns * np.cos(angle) + rows * np.sin(angle)) / period),
        "smooth texture": 127.5 + 60 * smooth / smooth.std(),
        "coarse noise": np.kron(
            rng.integers(0, 256, (n, images.shape[1], -(-height // 4), -(-width // 4))), np.ones((4, 4))
        )[..., :height, :width],
    }


def as_pixels(values: NDArray[np.generic]) -> Pixels:
    """Rounded and cut to 0..255."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def shifted(images: Pixels, down: int, right: int) -> Pixels:
    """The images moved by whole pixels; what comes in is 0."""
    return np.asarray(ndimage.shift(images, (0, 0, down, right), order=0))


def rotation(degrees: float) -> NDArray[np.float64]:
    """The 2 x 2 matrix of a rotation."""
    angle = np.deg2rad(degrees)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def bent(images: Pixels, matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    """The images under an affine map about their centre."""
    centre = (np.array(images.shape[2:]) - 1) / 2
    offset = centre - matrix @ centre
    planes = [
        ndimage.affine_transform(p, matrix, offset, order=1) for p in images.reshape(-1, *images.shape[2:]).astype("f4")
    ]
    return np.stack(planes).reshape(images.shape)


def main(count: int) -> None:
    params, root = load_params(), Path.cwd()
    data, models = fitting_data(params, root)
    validation = data.validation.images
    half = len(validation) // 2
    data = replace(data, validation=FeatureCache(validation[:half], models))
    normal = FeatureCache(validation[half:], models)
    sets = {
        name: FeatureCache(images, models) for name, images in spoiled(validation[half:][:count], params.seed).items()
    }
    tails: dict[str, dict[str, Floats]] = {}
    print(f"{'score':28} {'mean':>6} {'low 5':>6}  lowest")
    for name, member in MEMBERS.items():
        if member.needs_declared or member.slow:
            continue
        try:
            arrays = fit_member(member, data)
            values = {key: member.score(features, arrays) for key, features in {"normal": normal, **sets}.items()}
            tail = fit_tail(np.asarray(member.score(data.validation, arrays)))
        except ModelError as error:
            print(f"{name:28} left out: {error}")
            continue
        tails[name] = {key: tail_surprise(value, tail) for key, value in values.items()}
        row(name, values)
    chosen = [name for name in params.detector.members if name in tails]
    row("the detector", summed(tails, chosen))
    for name in chosen:
        row(f"  without {name}", summed(tails, [other for other in chosen if other != name]))
    for name in tails:
        if name not in chosen:
            row(f"  with {name}", summed(tails, [*chosen, name]))
    squares = {name: {key: np.square(value) for key, value in tails[name].items()} for name in chosen}
    row("  squares summed", summed(squares, chosen))
    for dimensions, components in GRADIENTS:
        arrays = fit_gradient_arrangement(data, dimensions, components)
        values = {
            key: gradient_arrangement.score(features, arrays) for key, features in {"normal": normal, **sets}.items()
        }
        tail = fit_tail(gradient_arrangement.score(data.validation, arrays))
        row(f"gradients on {dimensions}, {components}", values)
        rival = {key: tail_surprise(value, tail) for key, value in values.items()}
        row("  the detector with these", summed(tails | {"gradient_arrangement": rival}, chosen))


def summed(tails: dict[str, dict[str, Floats]], names: list[str]) -> dict[str, Floats]:
    """Kind of image -> one score of the named members' surprises."""
    return {key: combined([tails[name][key] for name in names]) for key in next(iter(tails.values()))}


def row(name: str, values: dict[str, Floats]) -> None:
    """Print a score's mean AUROC over the kinds of outliers, that of its five lowest, and which are lowest."""
    found = {key: auroc(values["normal"], value) for key, value in values.items() if key != "normal"}
    order = sorted(found, key=found.__getitem__)
    lowest = ", ".join(f"{key} {found[key]:.2f}" for key in order[:4])
    print(
        f"{name:28} {np.mean(list(found.values())):6.3f} {np.mean([found[k] for k in order[:5]]):6.3f}  {lowest}",
        flush=True,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
