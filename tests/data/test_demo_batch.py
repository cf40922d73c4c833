from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from densitywatch.data.dataset import open_split
from densitywatch.data.decoding.images import decode_image
from densitywatch.data.defects import DEFECTS
from densitywatch.data.demo_batch import make_demo_batch
from densitywatch.data.fetch import fetch_panel
from densitywatch.errors import DataError
from densitywatch.files import file_digest
from tests.data.conftest import MakeParams


def test_the_batch_holds_test_images_foreign_images_and_two_broken_files(
    tmp_path: Path, prepared: Path, make_params: MakeParams
) -> None:
    params = make_params()
    shutil.copytree(prepared / "data/prepared", tmp_path / "data/prepared")
    fetch_panel(params, tmp_path)
    make_demo_batch(params, tmp_path)
    batch = tmp_path / "data/inbox/demo"
    assert len(list(batch.glob("test_*.png"))) == 500
    assert len(list(batch.glob("mnist_*.png"))) == 25
    assert len(list(batch.iterdir())) == 528
    assert (batch / "_SUCCESS").read_bytes() == b""

    split = open_split(tmp_path / "data/prepared", "test")
    panel = np.load(tmp_path / "data/panel/mnist.npy")
    first = decode_image((batch / "test_0000.png").read_bytes(), size=28, channels=1, resize="crop")
    assert np.array_equal(first, split.images[0])
    digit = decode_image((batch / "mnist_00.png").read_bytes(), size=28, channels=1, resize="crop")
    assert (panel == digit).all(axis=(1, 2, 3)).any()
    for name, reason in (("truncated.png", "broken or cut short"), ("text.png", "not an image")):
        with pytest.raises(DataError, match=reason):
            decode_image((batch / name).read_bytes(), size=28, channels=1, resize="crop")

    before = {path.name: file_digest(path) for path in batch.iterdir()}
    make_demo_batch(params, tmp_path)
    assert {path.name: file_digest(path) for path in batch.iterdir()} == before


def test_the_outliers_of_a_users_own_source_are_further_test_images_with_defects(
    tmp_path: Path, prepared: Path, make_params: MakeParams
) -> None:
    shutil.copytree(prepared / "data/prepared", tmp_path / "data/prepared")
    params = make_params(source="photos")
    make_demo_batch(params, tmp_path)
    batch = tmp_path / "data/inbox/demo"
    whole, spoiled = sorted(batch.glob("test_*.png")), sorted(batch.glob("defect_*.png"))
    assert len(whole) == 500
    assert 20 <= len(spoiled) <= 25
    assert {path.stem.split("_", 2)[2] for path in spoiled} == set(DEFECTS)
    split = open_split(tmp_path / "data/prepared", "test")
    for path in spoiled:
        image = decode_image(path.read_bytes(), size=28, channels=1, resize="crop")
        source = split.images[500 + int(path.stem.split("_")[1])]
        assert 0 < (image != source).mean() <= 0.1, "no image is there both whole and spoiled"


def test_without_the_panel_it_says_what_to_run(tmp_path: Path, prepared: Path, make_params: MakeParams) -> None:
    shutil.copytree(prepared / "data/prepared", tmp_path / "data/prepared")
    with pytest.raises(DataError, match="run `dvc repro fetch_panel`"):
        make_demo_batch(make_params(), tmp_path)
    assert not (tmp_path / "data/inbox").exists()
