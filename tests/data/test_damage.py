"""Files of the project itself that a disk, or a hand, has damaged: one sentence that says how to get them back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densitywatch.data.accepted import schema, with_accepted
from densitywatch.data.dataset import open_split
from densitywatch.data.folder import fetch_folder
from densitywatch.data.image_table import on_disk
from densitywatch.data.raw import Raw, open_raw
from densitywatch.data.validation.validate import read_manifest
from densitywatch.errors import DataError
from densitywatch.params import DataParams
from tests.data.conftest import MakeParams
from tests.detector.standin import fill, png


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def first_page(path: Path, column: int) -> int:
    """Where the first page of a column begins."""
    told = pq.ParquetFile(path).metadata.row_group(0).column(column)
    return int(told.dictionary_page_offset or told.data_page_offset)


def read_all(params: DataParams, raw: Path) -> None:
    found = open_raw(params, raw)
    list(found.images())
    list(found.read(range(found.count)))


@pytest.fixture
def fetched(tmp_path: Path, make_params: MakeParams) -> tuple[DataParams, Path]:
    """A folder of ten images as `fetch` leaves it."""
    fill(tmp_path / "photos", 10)
    raw = tmp_path / "raw"
    raw.mkdir()
    fetch_folder(["photos"], raw, tmp_path)
    return make_params(source="folder", address="photos", size=28, channels=1).data, raw


@pytest.mark.parametrize(
    ("name", "column"),
    [("entries.parquet", None), ("images.parquet", None), ("entries.parquet", 0), ("images.parquet", 1)],
)
def test_a_fetched_source_that_is_damaged_asks_for_fetch(
    fetched: tuple[DataParams, Path], name: str, column: int | None
) -> None:
    params, raw = fetched
    flip(raw / name, -8 if column is None else first_page(raw / name, column))
    with pytest.raises(DataError, match=r"its files are damaged .* run `dvc repro -f fetch`"):
        read_all(params, raw)


def test_a_table_of_entries_without_its_columns_is_damaged_too(fetched: tuple[DataParams, Path]) -> None:
    params, raw = fetched
    pq.write_table(pa.table({"path": ["x"]}), raw / "entries.parquet")
    with pytest.raises(DataError, match="its files are damaged"):
        open_raw(params, raw)


@pytest.mark.parametrize("text", [b"{'descr': ", b"\x00" * 10, b"{'descr': '<i8', 'shape': (4"])
def test_an_array_with_a_damaged_header_asks_for_prepare(tmp_path: Path, text: bytes) -> None:
    np.save(tmp_path / "train.npy", np.zeros((3, 1, 4, 4), np.uint8))
    np.save(tmp_path / "train_labels.npy", np.zeros(3, np.int64))
    for name in ("train_labels.npy", "train.npy"):
        data = bytearray((tmp_path / name).read_bytes())
        data[10 : 10 + len(text)] = text
        (tmp_path / name).write_bytes(data[: 10 + len(text)] + b" " * (118 - len(text)))
        with pytest.raises(DataError, match="not a whole array; run `dvc repro -f prepare`"):
            open_split(tmp_path, "train")


def test_a_manifest_with_damaged_pages_asks_for_prepare(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": [f"{i}.png" for i in range(50)]}), tmp_path / "manifest.parquet")
    flip(tmp_path / "manifest.parquet", 6)
    with on_disk(None) as table, pytest.raises(DataError, match="not a whole Parquet file; run `dvc repro -f prepare`"):
        read_manifest(tmp_path, table)


def test_a_manifest_whose_texts_are_no_utf_8_asks_for_prepare(tmp_path: Path) -> None:
    bad = pa.array([b"\x80.png"], pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"path": bad}), tmp_path / "manifest.parquet")
    with on_disk(None) as table, pytest.raises(DataError, match="not a whole Parquet file; run `dvc repro -f prepare`"):
        read_manifest(tmp_path, table)


def test_accepted_images_with_damaged_bytes_ask_for_a_checkout(tmp_path: Path, make_params: MakeParams) -> None:
    file = tmp_path / "data" / "accepted" / "a.parquet"
    file.parent.mkdir(parents=True)
    about = {"sha256": "0", "label": None, "fair": False, "drift": 1, "alarm": "b"}
    rows = [{"path": f"{i}.png", **about, "bytes": png(seed=i)} for i in range(5)]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema()), file)
    flip(file, first_page(file, 6))
    raw = with_accepted(Raw(lambda: iter(()), 0, (), lambda _: iter(())), make_params().data, tmp_path)
    assert len(list(raw.images())) == raw.count == 5
    with pytest.raises(DataError, match=r"a\.parquet: damaged; run `dvc checkout data/accepted.dvc`"):
        list(raw.read(range(5)))
