"""The outlier panel: the kinds of images that do not belong. Only benchmark.py imports this file; a test proves it.

There are two. The foreign one is for Fashion-MNIST and MNIST: digits, noise, constants, images turned, mirrored and
inverted. A user's own images get defects instead (data/defects.py): that a detector of castings knows MNIST from
castings says nothing about scratches.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from densitywatch.arrays import Pixels
from densitywatch.data.dataset import DatasetInfo
from densitywatch.data.defects import DEFECTS, with_defects
from densitywatch.data.reading import resized
from densitywatch.detector.scores.transformations import TRANSFORMATIONS
from densitywatch.errors import DataError
from densitywatch.params import Params
from densitywatch.sizes import Size

MOST_KINDS = len(DEFECTS) + sum(len(changes) for changes in TRANSFORMATIONS.values())
"""The largest number of kinds that a panel has."""
NAMES = {"flip": ("hflip", "vflip"), "rotate": ("rot90", "rot180", "rot270"), "invert": ("invert",)}
"""What `detector.declared` may name -> the kinds that each of its changes makes."""


def make_panel(params: Params, root: Path, info: DatasetInfo, test: Pixels) -> dict[str, Pixels]:
    """The panel that params ask for, made of `test` (N, C, H, W): kind of outlier -> uint8 images, at most N.

    Raises DataError where there are no foreign images, or where no defect shows in the dataset's own.
    """
    if not params.own_panel:
        return panel_sets(test, foreign_digits(root, info, len(test)), params.seed)
    if made := own_sets(test, params.detector.declared, params.seed):
        return made
    raise DataError(
        f"{root / 'data' / 'prepared'}: no defect shows in the test images, which are all of one shade; look at them,"
        " or set detector.panel to foreign"
    )


def own_sets(test: Pixels, declared: tuple[str, ...], seed: int) -> dict[str, Pixels]:
    """Kind of outlier -> test images with one defect each, and under each transformation that is declared."""
    changes = {
        kind: change for word in declared for kind, change in zip(NAMES[word], TRANSFORMATIONS[word], strict=True)
    }
    return with_defects(test, seed) | {kind: np.ascontiguousarray(change(test)) for kind, change in changes.items()}


def panel_sets(test: Pixels, foreign: Pixels | None, seed: int) -> dict[str, Pixels]:
    """Kind of outlier -> images, uint8 (N, C, H, W) with N = len(test); `foreign` are the kind `mnist`."""
    rng = np.random.default_rng(seed)
    n, shape = len(test), test.shape[1:]
    sets = {} if foreign is None else {"mnist": foreign[:n]}
    sets |= {
        "hflip": test[..., ::-1],
        "vflip": test[..., ::-1, :],
        "rot90": np.rot90(test, 1, (-2, -1)),
        "invert": 255 - test,
        "uniform_noise": rng.integers(0, 256, test.shape, dtype=np.uint8),
        "constant": np.broadcast_to(rng.integers(0, 256, (n, 1, 1, 1), dtype=np.uint8), (n, *shape)),
    }
    return {name: np.ascontiguousarray(images) for name, images in sets.items()}


def foreign_digits(root: Path, info: DatasetInfo, limit: int) -> Pixels | None:
    """At most `limit` MNIST images in the dataset's size and colours; None where the dataset itself is MNIST.

    Raises DataError when data/panel is missing or not whole.
    """
    if info.name == "mnist":
        return None
    path = root / "data" / "panel" / "mnist.npy"
    try:
        digits = np.load(path, mmap_mode="r", allow_pickle=False)[:limit]
    except FileNotFoundError:
        raise DataError(f"{path}: no foreign images here; run `dvc repro fetch_panel`") from None
    except (ValueError, EOFError):
        raise DataError(f"{path}: not a whole array; run `dvc repro -f fetch_panel`") from None
    return fitted_to(np.array(digits), info.size, info.channels)


def fitted_to(images: Pixels, size: Size, channels: int) -> Pixels:
    """Pixels (N, C, H, W) resized to `size` and turned to grey or RGB."""
    images = resized(images, size)
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, 1)
    return np.asarray(images.mean(1, keepdims=True).round(), dtype=np.uint8)
