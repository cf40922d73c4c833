"""How the outlier detector's members were chosen: AUROC on synthetic outliers made of validation images.

    python benchmarks/outlier_choice.py [IMAGES]

Every member is fitted as `densitywatch calibrate` would, on training images and the first half of the validation
images, and measured on the second half against the same images spoiled by operations that are not on the panel
(docs/lab/detector.md). Neither test images nor the panel are read. Prints one row a score, then sums that leave one out
or take one in, a rival rule of combination, and the gradients with other numbers of components.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from densitywatch.detector import detector
from densitywatch.detector.feature_cache import Readings
from densitywatch.detector.member_table import all_members
from densitywatch.detector.scores.scores import fit_gradient_arrangement, gradient_arrangement
from densitywatch.detector.tail_combination import fit_tail, tail_surprise
from densitywatch.errors import ModelError
from densitywatch.outlier_benchmark.auroc import auroc
from densitywatch.params import load_params

Images = NDArray[np.uint8]
GRADIENTS = ((64, 80), (150, 80), (100, 30), (100, 160))
"""Principal components and mixture components: rivals of what gradient_arrangement has."""


def spoiled(images: Images, seed: int = 0) -> dict[str, Images]:
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
    return {name: np.clip(np.rint(values), 0, 255).astype(np.uint8) for name, values in result.items()}


def shifted(images: Images, down: int, right: int) -> Images:
    return np.asarray(ndimage.shift(images, (0, 0, down, right), order=0))


def rotation(degrees: float) -> NDArray[np.float64]:
    angle = np.deg2rad(degrees)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def bent(images: Images, matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    """The images under an affine map about their centre."""
    centre = (np.array(images.shape[2:]) - 1) / 2
    offset = centre - matrix @ centre
    planes = [
        ndimage.affine_transform(p, matrix, offset, order=1) for p in images.reshape(-1, *images.shape[2:]).astype("f4")
    ]
    return np.stack(planes).reshape(images.shape)


def main(count: int) -> None:
    params, root = load_params(), Path.cwd()
    given, models = detector.what_is_given(params, root)
    validation = given.validation.images
    half = len(validation) // 2
    given = replace(given, validation=Readings(validation[:half], models))
    normal = Readings(validation[half:], models)
    sets = {name: Readings(images, models) for name, images in spoiled(validation[half:][:count], params.seed).items()}
    tails: dict[str, dict[str, NDArray[np.floating]]] = {}
    print(f"{'score':28} {'mean':>6} {'low 5':>6}  lowest")
    for name, member in all_members().items():
        if member.declared or member.slow:
            continue
        try:
            arrays = detector.fit_member(member, given)
            values = {key: member.score(seen, arrays) for key, seen in {"normal": normal, **sets}.items()}
            tail = fit_tail(np.asarray(member.score(given.validation, arrays)))
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
        arrays = fit_gradient_arrangement(given, dimensions, components)
        values = {key: gradient_arrangement(seen, arrays) for key, seen in {"normal": normal, **sets}.items()}
        tail = fit_tail(gradient_arrangement(given.validation, arrays))
        row(f"gradients on {dimensions}, {components}", values)
        rival = {key: tail_surprise(value, tail) for key, value in values.items()}
        row("  the detector with these", summed(tails | {"gradient_arrangement": rival}, chosen))


def summed(tails: dict[str, dict[str, NDArray[np.floating]]], names: list[str]) -> dict[str, NDArray[np.floating]]:
    return {key: np.sum([tails[name][key] for name in names], axis=0) for key in next(iter(tails.values()))}


def row(name: str, values: dict[str, NDArray[np.floating]]) -> None:
    found = {key: auroc(values["normal"], value) for key, value in values.items() if key != "normal"}
    order = sorted(found, key=found.__getitem__)
    lowest = ", ".join(f"{key} {found[key]:.2f}" for key in order[:4])
    print(
        f"{name:28} {np.mean(list(found.values())):6.3f} {np.mean([found[k] for k in order[:5]]):6.3f}  {lowest}",
        flush=True,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
