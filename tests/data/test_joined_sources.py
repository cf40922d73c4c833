"""Several sources joined in one dataset: names, labels, groups, and what `look` notices."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from densitywatch.data.dataset import read_info
from densitywatch.data.fetch import fetch
from densitywatch.data.inputs.joined import source_names
from densitywatch.data.look import MEMORY, is_changed, look
from densitywatch.data.prepare import prepare
from densitywatch.errors import DataError
from densitywatch.params import Params
from tests.data.conftest import MakeParams


def fill(folder: Path, count: int, seed: int, name: str = "{n:02d}.png") -> None:
    random = np.random.default_rng(seed)
    for n in range(count):
        path = folder / name.format(n=n, scene=n // 4, frame=n % 4)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 16), dtype=np.uint8)).save(path)


@pytest.fixture
def params(make_params: MakeParams) -> Params:
    return make_params(source="folder", address=["a/line-4", "b/line-5"], size=16)


def paths(root: Path) -> list[str]:
    found: list[str] = pq.read_table(root / "data/prepared/manifest.parquet").column("path").to_pylist()
    return found


def test_images_of_all_sources_are_in_the_dataset_under_the_name_of_their_source(
    tmp_path: Path, params: Params
) -> None:
    fill(tmp_path / "a/line-4", 30, seed=1)
    fill(tmp_path / "b/line-5", 20, seed=2)
    (tmp_path / "b/line-5/notes.png").write_text("no image")
    fetch(params, tmp_path)
    prepare(params, tmp_path)
    expected = [f"line-4/{n:02d}.png" for n in range(30)] + [f"line-5/{n:02d}.png" for n in range(20)]
    assert sorted(paths(tmp_path)) == expected
    assert read_info(tmp_path / "data/prepared").name == "line-4-and-line-5"
    rejected = json.loads((tmp_path / "data/raw/rejected.json").read_text())
    assert [item["path"] for item in rejected] == ["line-5/notes.png"]
    # the pixels are those of the file of that name
    rows = pq.read_table(tmp_path / "data/prepared/manifest.parquet").to_pylist()
    for row in rows[::7]:
        where = tmp_path / ("a" if row["path"].startswith("line-4") else "b") / row["path"]
        stored = np.load(tmp_path / f"data/prepared/{row['split']}.npy")[row["row"], 0]
        assert np.array_equal(stored, np.asarray(Image.open(where)))


def test_labels_and_parts_are_found_in_each_source_by_itself(tmp_path: Path, params: Params) -> None:
    fill(tmp_path / "a/line-4", 30, seed=1, name="cap/{n:02d}.png")
    fill(tmp_path / "b/line-5/export", 20, seed=2, name="train/cap/{n:02d}.png")
    fill(tmp_path / "b/line-5/export", 20, seed=3, name="test/cap/{n:02d}.png")
    fetch(params, tmp_path)
    prepare(params, tmp_path)
    info = read_info(tmp_path / "data/prepared")
    assert info.class_names == ("cap",)
    assert info.counts["test"] == 20


def test_labels_in_one_source_alone_are_a_sentence(tmp_path: Path, params: Params) -> None:
    fill(tmp_path / "a/line-4", 10, seed=1, name="cap/{n:02d}.png")
    fill(tmp_path / "b/line-5", 10, seed=2)
    with pytest.raises(DataError, match="the images of a/line-4 have labels and those of b/line-5 have none"):
        fetch(params, tmp_path)


def test_groups_of_two_sources_do_not_mix(tmp_path: Path, make_params: MakeParams) -> None:
    for seed, folder in enumerate(("a/line-4", "b/line-5")):
        fill(tmp_path / folder, 80, seed=seed, name="scene_{scene:02d}_{frame}.png")
    params = make_params(source="folder", address=["a/line-4", "b/line-5"], size=16, group=r"scene_(\d+)")
    fetch(params, tmp_path)
    prepare(params, tmp_path)
    rows = pq.read_table(tmp_path / "data/prepared/manifest.parquet").to_pylist()
    assert len({row["group"] for row in rows}) == 40
    assert {row["group"] for row in rows if row["path"].startswith("line-5/scene_03")} == {"line-5: 03"}


@pytest.mark.parametrize(
    ("addresses", "names"),
    [
        (["images"], [""]),
        (["a/images", "s3://bucket/images/"], ["1-images", "2-images"]),
        (["a/x.zip", "b/y.zip"], ["x.zip", "y.zip"]),
        (["a/A", "b/a"], ["1-A", "2-a"]),
        (["a/x", "b/x", "c/2-x"], ["1-x", "2-x", "3-2-x"]),
        (["s3://key:secret@host/x", ".."], ["x", "2"]),
    ],
)
def test_sources_have_different_names_without_secrets(addresses: list[str], names: list[str]) -> None:
    assert source_names(addresses) == names


def test_a_change_in_any_source_is_noticed(tmp_path: Path, params: Params) -> None:
    for seed, folder in enumerate(("a/line-4", "b/line-5")):
        fill(tmp_path / folder, 3, seed=seed)
    look(params, tmp_path)
    assert not is_changed(params, tmp_path)
    assert set(json.loads((tmp_path / MEMORY).read_text())["addresses"]) <= {"a/line-4", "b/line-5"}
    for folder in ("a/line-4", "b/line-5"):
        (tmp_path / folder / "02.png").unlink()
        assert is_changed(params, tmp_path)
        look(params, tmp_path)
        assert not is_changed(params, tmp_path)
    assert json.loads((tmp_path / "data/source.json").read_text())["files"] == 4
    # the same file in the other folder is another dataset
    (tmp_path / "a/line-4/01.png").rename(tmp_path / "b/line-5/02.png")
    assert is_changed(params, tmp_path)


def test_one_source_that_is_away_is_named_and_the_run_goes_on(
    tmp_path: Path, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, folder in enumerate(("a/line-4", "b/line-5")):
        fill(tmp_path / folder, 3, seed=seed)
    look(params, tmp_path)
    (tmp_path / "b/line-5").rename(tmp_path / "b/unplugged")
    assert not is_changed(params, tmp_path)
    assert "b/line-5 is not there; going on with the 6 files" in capsys.readouterr().err
