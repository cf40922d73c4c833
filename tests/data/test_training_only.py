"""Images that a person reviewed because they were flagged are for training alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densitywatch.data.dataset import SPLITS, read_info
from densitywatch.data.fetch import fetch
from densitywatch.data.prepare import prepare
from densitywatch.data.training_only import MARK, for_training_only, with_mark, without_mark
from tests.data.conftest import MakeParams
from tests.data.test_prepare import manifest_of


@pytest.mark.parametrize("path", ["a.png", "bag/a.png", "all.zip/bag\\a.png", f"{MARK}folder/a.png"])
def test_the_mark_goes_before_the_file_name_and_comes_off_again(path: str) -> None:
    assert for_training_only(with_mark(path))
    assert without_mark(with_mark(path)) == path
    assert without_mark(path) == path


@pytest.mark.parametrize(
    ("path", "marked"),
    [
        (f"{MARK}ab12.png", True),
        (f"bag/{MARK}ab12.png", True),
        (f"all.zip/bag\\{MARK}ab12.png", True),
        (f"{MARK}folder/a.png", False),
        ("bag/a.png", False),
        (f"bag/a-{MARK}b.png", False),
    ],
)
def test_the_file_name_has_the_mark(path: str, marked: bool) -> None:
    assert for_training_only(path) is marked


def test_marked_images_go_into_training_alone_and_move_no_other_image(tmp_path: Path, make_params: MakeParams) -> None:
    random, folder = np.random.default_rng(0), tmp_path / "mine"
    folder.mkdir()
    plain = random.integers(0, 256, (80, 28, 28), dtype=np.uint8)
    for number, pixels in enumerate(plain):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    params = make_params(source="folder", address="mine")
    fetch(params, tmp_path)
    prepare(params, tmp_path)
    before = {row["path"]: row["split"] for row in manifest_of(tmp_path)}
    assert {split for split in before.values()} == set(SPLITS)
    for number in range(40):
        Image.fromarray(random.integers(0, 256, (28, 28), dtype=np.uint8)).save(folder / f"{MARK}{number}.png")
    of_calibration = next(path for path, split in before.items() if split == "calibration")
    Image.open(folder / str(of_calibration)).save(folder / f"{MARK}again.png")
    fetch(params, tmp_path)
    prepare(params, tmp_path)
    after = {row["path"]: row["split"] for row in manifest_of(tmp_path)}
    marked = {path: split for path, split in after.items() if for_training_only(str(path))}
    assert len(marked) == 40
    assert set(marked.values()) == {"train"}
    assert {path: split for path, split in after.items() if path not in marked} == before
    facts = json.loads((tmp_path / "data/prepared/dataset.json").read_text())
    assert facts["dropped"] == [
        {"path": f"{MARK}again.png", "reason": f"the same pixels as {of_calibration} of the calibration part"}
    ]
    assert sum(read_info(tmp_path / "data/prepared").counts.values()) == 120
