"""`demo-batch`: an incoming batch to try the outlier detector on, written from real images and two broken files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from densitywatch.data.dataset import open_split, read_info
from densitywatch.data.encoding import png
from densitywatch.data.fetch import PANEL
from densitywatch.data.prepare import PREPARED
from densitywatch.errors import DataError
from densitywatch.files import whole_folder
from densitywatch.params import Params
from densitywatch.progress import say

DEMO = Path("data/inbox/demo")
TEST_IMAGES = 500
FOREIGN_IMAGES = 25


def make_demo_batch(params: Params, root: Path) -> None:
    """Write `root`/data/inbox/demo: 500 test images, 25 MNIST digits, a truncated PNG, a text named .png, _SUCCESS.

    A dataset with fewer test images gives those it has. The files' names say what is in them, so that a reader of the
    batch report can check it.
    """
    folder = root / PREPARED
    read_info(folder)
    test = open_split(folder, "test").images[:TEST_IMAGES]
    try:
        foreign = np.load(root / PANEL / "mnist.npy", mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{root / PANEL}: no foreign images here; run `dvc repro fetch_panel`") from None
    generator = np.random.default_rng(params.seed)
    digits = foreign[np.sort(generator.choice(len(foreign), FOREIGN_IMAGES, replace=False))]
    with whole_folder(root / DEMO) as batch:
        for number, image in enumerate(test):
            (batch / f"test_{number:04d}.png").write_bytes(png(image))
        for number, image in enumerate(digits):
            (batch / f"mnist_{number:02d}.png").write_bytes(png(image))
        whole = png(test[0])
        (batch / "truncated.png").write_bytes(whole[: len(whole) // 2])
        (batch / "text.png").write_text("This is a text file whose name ends in .png.\n", encoding="utf-8")
        (batch / "_SUCCESS").touch()
    say(f"{len(test)} test images, {len(digits)} MNIST digits and 2 broken files in {DEMO}")
