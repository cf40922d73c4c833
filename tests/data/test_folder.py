from __future__ import annotations

import io
import json
import os
import socket
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from densitywatch.data import folder as module
from densitywatch.data.dataset import SPLITS, open_split, read_info
from densitywatch.data.fetch import fetch
from densitywatch.data.inputs import source as inputs
from densitywatch.data.prepare import prepare
from densitywatch.errors import DataError
from tests.data.conftest import MakeParams

Fetch = Callable[..., tuple[list[str], dict[str, str]]]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


@pytest.fixture
def fetched(tmp_path: Path, make_params: MakeParams) -> Fetch:
    """Fetch an address; gives the paths that were kept, and the reasons of the rejected ones by path."""

    def run(address: object = "images") -> tuple[list[str], dict[str, str]]:
        fetch(make_params(source="folder", address=str(address)), tmp_path)
        kept = pq.read_table(tmp_path / "data/raw/images.parquet").column("path").to_pylist()
        rejected = json.loads((tmp_path / "data/raw/rejected.json").read_text())
        return kept, {item["path"]: item["reason"] for item in rejected}

    return run


@pytest.fixture
def png(garments: npt.NDArray[np.uint8]) -> Callable[[int], bytes]:
    def make(number: int) -> bytes:
        out = io.BytesIO()
        Image.fromarray(garments[number]).save(out, "PNG")
        return out.getvalue()

    return make


Png = Callable[[int], bytes]


def large_source(path: Path, count: int) -> int:
    """`count` noisy pictures in an archive or a Parquet file; returns the bytes of all of them."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)).save(out, "BMP")
    data, names = out.getvalue(), [f"{number:04d}.bmp" for number in range(count)]
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as zipped:
            for name in names:
                zipped.writestr(name, data)
    elif path.suffix == ".tar":
        with tarfile.open(path, "w") as tar:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    else:
        pq.write_table(pa.table({"path": names, "image": [data] * count}), path, row_group_size=8)
    return count * len(data)


@pytest.mark.parametrize("kind", ["zip", "tar", "parquet"])
def test_the_images_of_an_archive_are_in_memory_a_few_at_a_time(tmp_path: Path, fetched: Fetch, kind: str) -> None:
    source = tmp_path / f"images.{kind}"
    whole = large_source(source, 400)
    tracemalloc.start()
    try:
        kept, _ = fetched(source)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(kept) == 400
    assert peak < 4 * module.BATCH_FILES / 400 * whole


def fill(folder: Path, png: Png, count: int, start: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        (folder / f"{number:04d}.png").write_bytes(png(number))


def test_a_folder_goes_through_to_arrays_with_labels(
    images: Path, tmp_path: Path, png: Png, fetched: Fetch, make_params: MakeParams
) -> None:
    fill(images / "good", png, 30)
    fill(images / "bad", png, 20, start=30)
    kept, rejected = fetched()
    assert len(kept) == 50
    assert rejected == {}
    prepare(make_params(source="folder", address="images"), tmp_path)
    info = read_info(tmp_path / "data/prepared")
    assert info.class_names == ("bad", "good")
    assert sum(info.counts.values()) == 50
    for name in info.counts:
        assert set(open_split(tmp_path / "data/prepared", name).labels) == {0, 1}


def test_the_bytes_of_a_file_are_kept_as_they_are(images: Path, tmp_path: Path, png: Png, fetched: Fetch) -> None:
    fill(images, png, 3)
    fetched()
    stored = pq.read_table(tmp_path / "data/raw/images.parquet").column("bytes").to_pylist()
    assert stored == [path.read_bytes() for path in sorted(images.iterdir())]


def test_small_files_share_a_row_group_and_large_ones_fill_several(
    images: Path, tmp_path: Path, fetched: Fetch
) -> None:
    """The index of the row groups is in the memory of whoever opens the file."""
    for number in range(200):
        Image.new("L", (8, 8), number).save(images / f"a{number:03d}.png")
    for number in range(70):
        Image.new("RGB", (190, 190), (number, 0, 0)).save(images / f"b{number:03d}.bmp")
    fetched()
    told = pq.read_metadata(tmp_path / "data/raw/images.parquet")
    assert [told.row_group(number).num_rows for number in range(told.num_row_groups)] == [256, 14]
    assert pq.read_table(tmp_path / "data/raw/entries.parquet").column("row").to_pylist() == list(range(270))


def test_what_cannot_be_used_is_listed_with_its_reason_and_shown(
    images: Path, tmp_path: Path, png: Png, fetched: Fetch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(images, png, 3)
    (images / "empty.png").touch()
    (images / "cut.png").write_bytes(png(5)[:200])
    (images / "page.png").write_text("<html></html>")
    (images / "notes.txt").write_text("notes")
    (images / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (images / "evil\nname\x1b[31m.png").write_text("x")
    (images / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    kept, rejected = fetched()
    assert len(kept) == 3
    assert len(rejected) == 6
    assert rejected["empty.png"] == "the file is empty"
    assert rejected["cut.png"].startswith("broken or cut short")
    assert "HTML" in rejected["page.png"]
    shown = capsys.readouterr().err
    assert shown.count("\nnot usable: ") == module.SHOWN + 1
    assert "1 more, see data/raw/rejected.json" in shown
    assert "\x1b[31m" not in shown, "a file's name does not reach the terminal as a command"


def test_links_stay_inside_and_special_files_are_not_waited_for(
    images: Path, tmp_path: Path, png: Png, fetched: Fetch
) -> None:
    fill(images, png, 2)
    secret = tmp_path / "secret"
    fill(secret, png, 1, start=7)
    (images / "inside.png").symlink_to(images / "0000.png")
    (images / "outside.png").symlink_to(secret / "0007.png")
    (images / "outside").symlink_to(secret)
    (images / "loop").symlink_to(images)
    (images / "nowhere.png").symlink_to(images / "gone.png")
    (images / "itself.png").symlink_to(images / "itself.png")
    os.mkfifo(images / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(images)  # a socket's path must be short
        listener.bind("socket.png")
        kept, rejected = fetched()
    assert kept == ["0000.png", "0001.png", "inside.png"]
    assert rejected["outside.png"] == inputs.DATASET_LINK_OUT
    assert rejected["outside"] == inputs.DATASET_LINK_OUT
    assert rejected["loop"] == "a symbolic link to a folder; not followed"
    assert rejected["nowhere.png"] == "a symbolic link that leads nowhere"
    assert rejected["pipe.png"] == rejected["socket.png"] == "not a regular file"
    assert set(rejected) == {
        "outside.png", "outside", "loop", "nowhere.png", "itself.png", "pipe.png", "socket.png"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda folder: None, "images holds no files; put images into it"),
        (lambda folder: folder.rmdir(), "images is not there; give a folder of images, a zip, tar or Parquet file"),
        (
            lambda folder: (folder.rmdir(), folder.touch()),
            "images is a file; give a folder of images, a zip, tar or Parquet file",
        ),
        (
            lambda folder: (folder / "a.png").touch(),
            "none of the 1 files in images is a usable image; the first, 'a.png'",
        ),
    ],
)
def test_a_folder_without_images_is_one_sentence_and_leaves_nothing(
    images: Path, tmp_path: Path, fetched: Fetch, make: Callable[[Path], object], sentence: str
) -> None:
    make(images)
    with pytest.raises(DataError) as error:
        fetched()
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert list((tmp_path / "data").iterdir()) == []


def test_one_image_is_too_few_and_the_sentence_says_so(
    images: Path, tmp_path: Path, png: Png, fetched: Fetch, make_params: MakeParams
) -> None:
    fill(images, png, 1)
    fetched()
    with pytest.raises(DataError, match=r"1 usable images \(1 that differ\) are too few: none is left for train"):
        prepare(make_params(source="folder", address="images"), tmp_path)
    assert not (tmp_path / "data/prepared").exists()


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("channels", [1, 3])
def test_mixed_sizes_and_modes_become_one_shape(
    images: Path, tmp_path: Path, fetched: Fetch, make_params: MakeParams, resize: str, channels: int
) -> None:
    shapes = [(5, 90), (300, 200), (28, 28), (64, 64), (40, 30), (31, 77), (28, 99), (200, 28)]
    modes = ["L", "RGB", "RGBA", "P", "CMYK", "1", "LA", "RGB"]
    for number, (shape, mode) in enumerate(zip(shapes, modes, strict=True)):
        image = Image.new("RGB", shape, (20 * number, 90, 40)).convert(mode)
        image.save(images / f"{number}.{'jpg' if mode == 'CMYK' else 'png'}")
    fetched()
    params = make_params(source="folder", address="images", size=16, channels=channels, resize=resize)
    prepare(params, tmp_path)
    manifest = pq.read_table(tmp_path / "data/prepared/manifest.parquet").to_pylist()
    assert {(row["width"], row["height"]) for row in manifest} == set(shapes)
    assert {row["mode"] for row in manifest} == set(modes)
    assert open_split(tmp_path / "data/prepared", "train").images.shape[1:] == (channels, 16, 16)


@pytest.mark.parametrize(
    ("place", "digest"),
    [
        (lambda n: f"{'ab'[n % 2]}/{n:03d}.png", "ad4a6a2776179a72d1315dfa24a99269"),
        (lambda n: f"{'train' if n % 3 else 'test'}/{'ab'[n % 2]}/{n:03d}.png", "ccec5d09544381b30ec85c4a593fb355"),
        (lambda n: f"{n:03d}.png", "701e205ad33a48dde5bd35199bfc2f64"),
        (lambda n: f"good/{n:03d}.png", "08aa0dc99912f7fb579360a69b3809a9"),
    ],
)
def test_plain_folders_give_the_dataset_that_they_gave_before_parts_were_told(
    images: Path, tmp_path: Path, fetched: Fetch, make_params: MakeParams, place: Callable[[int], str], digest: str
) -> None:
    generator = np.random.default_rng(5)
    for number in range(60):
        path = images / place(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (16, 16), dtype=np.uint8)).save(path)
    fetched()
    prepare(make_params(source="folder", address="images", size=16), tmp_path)
    assert read_info(tmp_path / "data/prepared").digest[:32] == digest


def test_parts_become_splits_and_an_image_of_several_stays_in_the_one_that_is_measured_on(
    images: Path, tmp_path: Path, png: Png, fetched: Fetch, make_params: MakeParams
) -> None:
    fill(images / "Train/a", png, 40)
    fill(images / "VALID/a", png, 10, start=35)  # five of train
    fill(images / "test/a", png, 10, start=42)  # three of validation
    (images / "test/a/train.png").write_bytes(png(0))
    kept, _ = fetched()
    assert len(kept) == 61
    prepare(make_params(source="folder", address="images"), tmp_path)
    rows = pq.read_table(tmp_path / "data/prepared/manifest.parquet").to_pylist()
    where = {name: {row["path"].split("/")[0] for row in rows if row["split"] == name} for name in SPLITS}
    assert where == {
        "train": {"Train"},
        "validation": {"VALID"},
        "calibration": {"Train"},
        "gate": {"Train"},
        "test": {"test"},
    }
    counts = read_info(tmp_path / "data/prepared").counts
    assert counts == {"train": 29, "validation": 7, "calibration": 3, "gate": 2, "test": 11}
    dropped = json.loads((tmp_path / "data/prepared/dataset.json").read_text())["dropped"]
    reasons = {item["path"]: item["reason"] for item in dropped}
    assert set(reasons) == {
        "VALID/a/0042.png",
        "VALID/a/0043.png",
        "VALID/a/0044.png",
        "Train/a/0000.png",
        *[f"Train/a/{n:04d}.png" for n in range(35, 40)],
    }
    assert reasons["Train/a/0000.png"] == "the same pixels as test/a/train.png of the test part"
    assert reasons["Train/a/0035.png"] == "the same pixels as VALID/a/0035.png of the validation part"
    assert reasons["VALID/a/0042.png"] == "the same pixels as test/a/0042.png of the test part"


def test_a_validation_part_alone_leaves_the_test_split_to_be_cut_from_train(
    images: Path, tmp_path: Path, png: Png, fetched: Fetch, make_params: MakeParams
) -> None:
    fill(images / "train/a", png, 40)
    fill(images / "val/a", png, 10, start=40)
    fetched()
    prepare(make_params(source="folder", address="images"), tmp_path)
    rows = pq.read_table(tmp_path / "data/prepared/manifest.parquet").to_pylist()
    assert {row["split"] for row in rows if row["path"].startswith("val")} == {"validation"}
    assert read_info(tmp_path / "data/prepared").counts["test"] == 6


@pytest.mark.parametrize("name", ["../x/1.png", "..\\x/1.png"])
def test_a_store_whose_names_climb_out_is_refused(fetched: Fetch, tmp_path: Path, png: Png, name: str) -> None:
    MemoryFileSystem.store.clear()
    files = MemoryFileSystem()
    files.pipe_file("/bucket/fine/2.png", png(2))
    files.store[f"/bucket/{name}"] = files.store["/bucket/fine/2.png"]
    with pytest.raises(DataError, match="cannot be a label"):
        fetched("memory://bucket")
    assert list((tmp_path / "data").iterdir()) == []


def test_any_fsspec_address_will_do(fetched: Fetch, png: Png) -> None:
    MemoryFileSystem.store.clear()
    files = MemoryFileSystem()
    for number in range(150):
        files.pipe_file(f"/bucket/in/[{number % 3}]*?/{number}.png", png(number))
    files.pipe_file("/bucket/in/[0]*?/none.png", b"")
    files.pipe_file("/bucket/elsewhere/1.png", png(1))
    kept, rejected = fetched("memory://bucket/in")
    assert len(kept) == 150
    assert kept[0].startswith("[0]*?/")
    assert rejected == {"[0]*?/none.png": "the file is empty"}


def test_an_archive_is_read_through_fsspec_too(fetched: Fetch, tmp_path: Path, png: Png) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for number in range(5):
            archive.writestr(f"a/{number}.png", png(number))
    kept, _ = fetched(f"zip://::file://{tmp_path}/images.zip")
    assert kept == [f"a/{number}.png" for number in range(5)]


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("nosuch://bucket", "nosuch://bucket: cannot be reached \\(Protocol not known"),
        ("zip://::file:///no/such.zip", "cannot be reached|no such folder or file"),
        ("memory://empty", "no such folder or file; check the address"),
    ],
)
def test_an_address_that_cannot_be_read_is_one_sentence(fetched: Fetch, address: str, sentence: str) -> None:
    MemoryFileSystem.store.clear()
    with pytest.raises(DataError, match=sentence) as error:
        fetched(address)
    assert "\n" not in str(error.value)


def test_an_object_that_fails_while_it_is_read_is_one_rejected_row(
    fetched: Fetch, png: Png, monkeypatch: pytest.MonkeyPatch
) -> None:
    MemoryFileSystem.store.clear()
    files = MemoryFileSystem()
    for number in range(3):
        files.pipe_file(f"/bucket/{number}.png", png(number))
    real = MemoryFileSystem.open

    def flaky(self: MemoryFileSystem, path: str, *args: object, **kwargs: object) -> object:
        if path.endswith("1.png"):
            raise OSError("connection reset")
        return real(self, path, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "open", flaky)
    kept, rejected = fetched("memory://bucket")
    assert kept == ["0.png", "2.png"]
    assert rejected == {"1.png": "cannot be read: connection reset"}
