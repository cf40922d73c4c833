"""Dataset folders as people have them: what tools leave behind, links, archives, Parquet, tables of labels, masks."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from densitywatch.data.fetch import fetch
from densitywatch.data.prepare import dataset_name
from densitywatch.errors import DataError
from tests.data.conftest import MakeParams
from tests.marks import marks

APPLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(60)
Labels = Counter[tuple[str, str | None]]


def picture(number: int) -> bytes:
    out = io.BytesIO()
    generator = np.random.default_rng(number)
    Image.fromarray(generator.integers(0, 255, (12, 12), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def many(folder: Path, count: int, start: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        (folder / f"{number:03d}.png").write_bytes(picture(number))


def put(path: Path, data: bytes = b"x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def two_classes(folder: Path) -> None:
    many(folder / "ok", 10)
    many(folder / "nok", 10, 10)


TWO: Labels = Counter({("", "ok"): 10, ("", "nok"): 10})


class Fetched:
    def __init__(self, root: Path, told: str) -> None:
        entries = pq.read_table(root / "data/raw/entries.parquet").to_pylist()
        self.labels: Labels = Counter((row["part"], row["label"]) for row in entries)
        self.paths = [row["path"] for row in entries]
        rejected = json.loads((root / "data/raw/rejected.json").read_text())
        self.rejected = {item["path"]: item["reason"] for item in rejected}
        self.told = told.splitlines()


Fetch = Callable[..., Fetched]


@pytest.fixture
def fetched(tmp_path: Path, make_params: MakeParams, capsys: pytest.CaptureFixture[str]) -> Fetch:
    def run(address: object = "images", **data: object) -> Fetched:
        fetch(make_params(source="folder", address=str(address), **data), tmp_path)
        return Fetched(tmp_path, capsys.readouterr().err)

    return run


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tmp_path / "images"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Nothing: the log would have the query in it."""


@pytest.fixture
@marks("server")
def web() -> Iterator[Callable[[Path], str]]:
    """Serve a folder on this machine."""
    with ExitStack() as stack:

        def serve(folder: Path) -> str:
            handler = partial(Quiet, directory=str(folder))
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
            Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}"

        yield serve


def test_what_tools_leave_behind_is_no_class_no_image_and_no_duplicate(images: Path, fetched: Fetch) -> None:
    two_classes(images)
    for name in (
        "._000.png",
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
        "000.json",
        "000.txt",
        "000.cls",
        ".000.png.crc",
    ):
        put(images / "ok" / name, APPLE)
    for folder in ("ok/.ipynb_checkpoints", ".ipynb_checkpoints", "@eaDir", "ok/@eaDir/000.png", "__MACOSX/ok"):
        put(images / folder / "000.png", picture(0))
    put(images / "_SUCCESS", b"")
    put(images / "readme.txt")
    found = fetched()
    assert found.labels == TWO
    assert found.rejected == {}
    lines = [line for line in found.told if line.startswith("skipped ")]
    assert len(lines) == 1
    assert lines[0].startswith("skipped 15 files that are not images by their names: ")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tgz"])
@pytest.mark.parametrize("inner", ["", "photos/"])
def test_an_archive_is_the_same_as_the_folder_in_it(tmp_path: Path, fetched: Fetch, kind: str, inner: str) -> None:
    two_classes(tmp_path / "src")
    put(tmp_path / "src/__MACOSX/ok/._000.png", APPLE)
    put(tmp_path / "src/ok/.DS_Store")
    archive = tmp_path / f"photos.{kind}"
    files = sorted(path for path in (tmp_path / "src").rglob("*") if path.is_file())
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for path in files:
                packed.write(path, inner + str(path.relative_to(tmp_path / "src")))
    else:
        with tarfile.open(archive, "w:gz" if kind.endswith("gz") else "w") as tar:
            for path in files:
                tar.add(path, inner + str(path.relative_to(tmp_path / "src")))
    found = fetched(f"photos.{kind}")
    assert found.labels == TWO
    assert found.rejected == {}
    assert found.paths[0] == f"{inner}nok/010.png"
    assert any("skipped 2 files" in line for line in found.told)


def test_a_zip_of_a_folder_of_loose_images_has_no_labels_as_the_folder_has_none(tmp_path: Path, fetched: Fetch) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as packed:
        for number in range(9):
            packed.writestr(f"photos/{number}.png", picture(number))
    assert fetched("photos.zip").labels == {("", None): 9}
    (tmp_path / "photos.zip").rename(tmp_path / "signed.zip")
    assert fetched(f"file://{tmp_path}/signed.zip").labels == {("", "photos"): 9}


def test_archives_in_a_folder_are_opened_and_their_names_are_no_labels(images: Path, fetched: Fetch) -> None:
    images.mkdir()
    for part, start in (("train", 0), ("test", 40)):
        for shard in range(2):
            with zipfile.ZipFile(images / f"{part}-{shard}.zip", "w") as packed:
                for number in range(10):
                    packed.writestr(
                        f"{'ok' if number % 2 else 'nok'}/{number}.png", picture(start + 10 * shard + number)
                    )
    found = fetched()
    assert found.labels == {(part, label): 10 for part in ("train", "test") for label in ("ok", "nok")}
    assert "train-0.zip/nok/0.png" in found.paths


def parquet(path: Path, count: int, start: int = 0, *, dictionary: bool = False, names: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": picture(start + number), "path": None} for number in range(count)]
    column = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    label = pa.array([number % 2 for number in range(count)], pa.int64())
    told = {"info": {"features": {"label": {"names": ["nok", "ok"], "_type": "ClassLabel"}}}}
    table = pa.table({"Image": column, "label": label.dictionary_encode() if dictionary else label})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(told)} if names else None), path)


@pytest.mark.parametrize("name", ["data.parquet", "data.parq", "data.pq"])
def test_parquet_is_a_dataset_with_the_labels_of_its_column(tmp_path: Path, fetched: Fetch, name: str) -> None:
    parquet(tmp_path / name, 20)
    found = fetched(name)
    assert found.labels == TWO
    assert found.paths[:2] == ["row 0", "row 1"]
    parquet(tmp_path / name, 20, dictionary=True, names=False)
    assert fetched(name).labels == {("", "0"): 10, ("", "1"): 10}


def test_parquet_files_of_parts_are_parts_as_hugging_face_names_them(images: Path, fetched: Fetch) -> None:
    for number, part in enumerate(("train", "validation", "test")):
        parquet(images / f"data/{part}-00000-of-00001.parquet", 20, 20 * number)
    found = fetched()
    assert found.labels == {(part, label): 10 for part in ("train", "validation", "test") for label in ("ok", "nok")}


def test_a_list_column_and_binary_cells_are_images(tmp_path: Path, fetched: Fetch) -> None:
    table = pa.table({"images": [[picture(0), picture(1)], [picture(2)]], "class": ["a", "b"]})
    pq.write_table(table, tmp_path / "lists.parquet")
    found = fetched("lists.parquet")
    assert found.labels == {("", "a"): 2, ("", "b"): 1}
    assert found.paths[:2] == ["row 0 [0]", "row 0 [1]"]


def test_a_query_behind_an_archives_name_is_not_part_of_it(
    tmp_path: Path, fetched: Fetch, web: Callable[[Path], str], make_params: MakeParams
) -> None:
    parquet(tmp_path / "served/hf.parquet", 20)
    with zipfile.ZipFile(tmp_path / "served/photos.zip", "w") as packed:
        for number in range(9):
            packed.writestr(f"photos/{number}.png", picture(number))
    address = web(tmp_path / "served")
    assert fetched(f"{address}/hf.parquet?download=true").labels == TWO
    signed = f"{address}/photos.zip?X-Amz-Signature=secret"
    found = fetched(signed)
    assert found.labels == {("", None): 9}
    assert not any("secret" in line for line in found.told)
    assert dataset_name(make_params(source="folder", address=signed).data) == "photos.zip"


@pytest.mark.parametrize(
    "header", ["file,label", "image_name;class", "\ufeffFileName\tCategory", "path, Label ", "id,target"]
)
def test_a_table_of_labels_next_to_the_images_gives_their_labels(images: Path, fetched: Fetch, header: str) -> None:
    many(images / "pictures", 20)
    comma = next(letter for letter in ",;\t" if letter in header)
    rows = [f"pictures/{number:03d}.png{comma}{'ok' if number % 2 else 'nok'}" for number in range(20)]
    put(images / "labels.csv", "\n".join([header, *rows, f"gone.png{comma}ok"]).encode())
    found = fetched()
    assert found.labels == TWO
    assert "labels.csv: 1 of the files are not usable images here: 'gone.png'" in found.told


@pytest.mark.parametrize("name", ["labels.jsonl", "metadata.jsonl"])
def test_json_lines_with_file_and_label_give_the_labels(images: Path, fetched: Fetch, name: str) -> None:
    many(images / "pictures", 20)
    rows = [
        {"camera": 3, "file_name": f"pictures/{number:03d}.png", "label": "ok" if number % 2 else "nok"}
        for number in range(20)
    ]
    rows.append({"camera": 3, "file_name": "pictures/unlabelled.png", "label": None})
    put(images / name, "\n".join([*map(json.dumps, rows), ""]).encode())
    assert fetched().labels == TWO


def test_the_class_numbers_of_a_hugging_face_table_are_labels(images: Path, fetched: Fetch) -> None:
    many(images, 9)
    rows = [{"file_name": f"{number:03d}.png", "label": 7} for number in range(9)]
    put(images / "metadata.jsonl", "\n".join(map(json.dumps, rows)).encode())
    assert fetched().labels == {("", "7"): 9}


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (b'{"file": "000.png", "label": "a"}\n[1]\n', "labels.jsonl: line 2 is no JSON object; write one an image"),
        (b'{"file": "000.png"', "labels.jsonl: line 1 is no JSON object"),
        (b"[" * 100_000, "labels.jsonl: line 1 is no JSON object"),
        (b'{"camera": 1}\n', "labels.jsonl: its first line names no columns `file` and `label`"),
        (b"\xff\xfe", "labels.jsonl: its text is not UTF-8"),
    ],
)
def test_json_lines_that_are_no_table_of_labels_are_one_sentence(
    images: Path, fetched: Fetch, lines: bytes, sentence: str
) -> None:
    many(images, 9)
    put(images / "labels.jsonl", lines)
    with pytest.raises(DataError, match=sentence) as error:
        fetched()
    assert "\n" not in str(error.value)


def test_a_table_in_a_part_or_in_a_zip_speaks_for_its_own_folder(tmp_path: Path, images: Path, fetched: Fetch) -> None:
    for part, start in (("train", 0), ("test", 20)):
        many(images / part, 20, start)
        rows = [f"{number:03d},{'ok' if number % 2 else 'nok'}" for number in range(start, start + 20)]
        put(images / part / "metadata.csv", "\n".join(["file_name,label", *rows]).encode())
    want = {(part, label): 10 for part in ("train", "test") for label in ("ok", "nok")}
    assert fetched().labels == want
    shutil.make_archive(str(tmp_path / "images"), "zip", tmp_path, "images")
    assert fetched("images.zip").labels == want


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (b"a,b\n1,2\n", "labels.csv: its first line names no columns `file` and `label`"),
        (b"", "labels.csv: its first line names no columns"),
        ("file,label\n000.png,Größe\n".encode("latin-1"), "labels.csv: its text is not UTF-8; save it"),
        (b"file,label\n000.png,a\n000.png,b\n", "'000.png' has two labels, 'a' and 'b'; keep one"),
        (b"file,label\nx.png,a\n", "none of the 1 files that labels.csv names is a usable image"),
        (b"file,label\n000.png,a\n", "8 of 9 are not in the table of labels"),
        (b"file,label\n000.png,..\n", "are not in the table of labels|cannot be a label"),
    ],
)
def test_a_table_of_labels_that_cannot_be_used_is_one_sentence(
    images: Path, fetched: Fetch, table: bytes, sentence: str
) -> None:
    many(images, 9)
    put(images / "labels.csv", table)
    with pytest.raises(DataError, match=sentence) as error:
        fetched()
    assert "\n" not in str(error.value)


def test_a_table_of_other_things_is_no_table_of_labels(images: Path, fetched: Fetch) -> None:
    two_classes(images)
    put(images / "metadata.csv", b"camera,date\nx,y\n")
    found = fetched()
    assert found.labels == TWO
    assert any(line.startswith("metadata.csv is not used for labels: ") for line in found.told)


def test_a_folder_of_links_is_read_when_params_say_so_and_the_message_names_the_setting(
    tmp_path: Path, fetched: Fetch
) -> None:
    many(tmp_path / "cache/blobs", 12)
    (tmp_path / "cache/snapshots/abc/ok").mkdir(parents=True)
    for number in range(12):
        (tmp_path / f"cache/snapshots/abc/ok/{number:03d}.png").symlink_to(f"../../../blobs/{number:03d}.png")
    address = "cache/snapshots/abc"
    with pytest.raises(DataError, match=r"none of the 12 files .* \(data.follow_links: true in params.yaml reads"):
        fetched(address)
    found = fetched(address, follow_links=True)
    assert found.labels == {("", "ok"): 12}
    assert found.rejected == {}


def test_masks_are_no_images_and_defects_are_not_taken_for_normal_images(images: Path, fetched: Fetch) -> None:
    many(images / "train/good", 30)
    many(images / "test/good", 10, 30)
    many(images / "test/broken", 8, 40)
    for number in range(8):
        put(images / f"ground_truth/broken/{number:03d}_mask.png", picture(90 + number))
    put(images / "license.txt")
    found = fetched()
    assert found.labels == {("train", "good"): 30, ("test", "good"): 10}
    assert set(found.rejected) == {f"test/broken/{number:03d}.png" for number in range(40, 48)}
    assert set(found.rejected.values()) == {"of the class 'broken', which train does not have"}
    said = "\n".join(found.told)
    assert "masks in ground_truth/ (8)" in said
    assert (
        "the part test has classes that train does not have: 'broken' (8). They are not taken for normal images" in said
    )
    shutil.rmtree(images / "ground_truth")
    assert fetched().labels == found.labels


@pytest.mark.parametrize("before", ["", "local://", "file://"])
def test_brackets_in_a_local_address_are_a_name(tmp_path: Path, fetched: Fetch, before: str) -> None:
    many(tmp_path / "pics[1]", 3)
    many(tmp_path / "pics1", 1, 9)
    address = f"{before}{tmp_path if before == 'file://' else ''}{'/' if before == 'file://' else ''}pics[1]"
    assert sorted(fetched(address).paths) == ["000.png", "001.png", "002.png"]


def test_a_store_that_fails_for_one_file_after_the_other_stops(fetched: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    MemoryFileSystem.store.clear()
    files = MemoryFileSystem()
    for number in range(20):
        files.pipe_file(f"/bucket/{number:02d}.png", picture(number))

    def gone(*args: object, **kwargs: object) -> object:
        raise OSError("connection reset")

    monkeypatch.setattr(MemoryFileSystem, "open", gone)
    with pytest.raises(DataError, match=r"^data.address: 04.png and the 4 files before it cannot be read: connection"):
        fetched("memory://bucket")


def test_an_archive_in_a_store_that_cannot_be_opened_is_one_sentence(
    fetched: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    MemoryFileSystem.store.clear()
    MemoryFileSystem().pipe_file("/bucket/a.zip", b"PK")

    def refused(*args: object, **kwargs: object) -> object:
        raise PermissionError("forbidden")

    monkeypatch.setattr(MemoryFileSystem, "open", refused)
    with pytest.raises(DataError, match=r"^data.address: memory://bucket cannot be read: forbidden"):
        fetched("memory://bucket")
