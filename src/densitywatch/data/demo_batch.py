"""`demo-batch`: an incoming batch to try the outlier detector on, written from real images and two broken files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from densitywatch.arrays import Pixels
from densitywatch.data.dataset import open_split, read_info
from densitywatch.data.defects import DEFECTS, spoiled
from densitywatch.data.encoding import png
from densitywatch.data.fetch import PANEL
from densitywatch.data.prepare import PREPARED
from densitywatch.errors import DataError
from densitywatch.files import whole_folder
from densitywatch.params import Params
from densitywatch.progress import say

DEMO = Path("data/inbox/demo")
TEST_IMAGES = 500
OUTLIERS = 25


def make_demo_batch(params: Params, root: Path) -> None:
    """Write `root`/data/inbox/demo: 500 test images, 25 outliers, a truncated PNG, a text named .png, _SUCCESS.

    The outliers are MNIST digits, or further test images with defects where the panel is made of the dataset's own
    images (Params.own_panel). A dataset with fewer test images gives those it has. The files' names say what is in
    them, so that a reader of the batch report can check it.
    """
    folder = root / PREPARED
    read_info(folder)
    images = open_split(folder, "test").images
    if params.own_panel:
        few = min(OUTLIERS, len(images) // 4)
        whole = images[: min(TEST_IMAGES, len(images) - few)]
        outliers = with_one_defect(np.array(images[len(whole) : len(whole) + few]), params.seed)
        what = "images with a defect"
    else:
        whole, outliers, what = images[:TEST_IMAGES], digits(root, params.seed), "MNIST digits"
    with whole_folder(root / DEMO) as batch:
        for number, image in enumerate(whole):
            (batch / f"test_{number:04d}.png").write_bytes(png(image))
        for name, image in outliers:
            (batch / f"{name}.png").write_bytes(png(image))
        first = png(whole[0])
        (batch / "truncated.png").write_bytes(first[: len(first) // 2])
        (batch / "text.png").write_text("This is a text file whose name ends in .png.\n", encoding="utf-8")
        (batch / "_SUCCESS").touch()
    say(f"{len(whole)} test images, {len(outliers)} {what} and 2 broken files in {DEMO}")


def digits(root: Path, seed: int) -> list[tuple[str, Pixels]]:
    """Names and images of OUTLIERS MNIST digits, drawn from data/panel."""
    try:
        foreign = np.load(root / PANEL / "mnist.npy", mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{root / PANEL}: no foreign images here; run `dvc repro fetch_panel`") from None
    chosen = np.sort(np.random.default_rng(seed).choice(len(foreign), OUTLIERS, replace=False))
    return [(f"mnist_{number:02d}", image) for number, image in enumerate(foreign[chosen])]


def with_one_defect(images: Pixels, seed: int) -> list[tuple[str, Pixels]]:
    """Names and images: one defect in each, the kinds in turn. An image in which its kind does not show is left out."""
    made = []
    for turn, kind in enumerate(DEFECTS if len(images) else ()):
        copies, rows = spoiled(images, kind, seed)
        made += [(row, kind, copy) for copy, row in zip(copies, rows, strict=True) if row % len(DEFECTS) == turn]
    return [(f"defect_{row:02d}_{kind}", image) for row, kind, image in sorted(made, key=lambda item: item[0])]
