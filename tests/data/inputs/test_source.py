from __future__ import annotations

import http.server
import io
import os
import re
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densitywatch import text
from densitywatch.data.inputs import source as inputs
from densitywatch.data.inputs.entries import SourceUnreachable
from densitywatch.data.inputs.source import entries, without_secrets
from densitywatch.errors import DataError
from densitywatch.text import as_text
from tests.detector.standin import png
from tests.marks import marks


def read(source: str | Path) -> dict[str, bytes | str]:
    """path -> bytes, or the reason why there are none."""
    found: dict[str, bytes | str] = {}
    for entry in entries(str(source)):
        assert entry.path not in found
        try:
            found[entry.path] = entry.read()
        except DataError as error:
            found[entry.path] = str(error)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    top = tmp_path / "batch"
    (top / "b" / "deep").mkdir(parents=True)
    for name in ("z.png", "a.png", "b/2.png", "b/deep/1.png"):
        (top / name).write_bytes(name.encode())
    (top / "_SUCCESS").touch()
    return top


def test_a_folder_gives_every_file_below_it_in_a_fixed_order_and_no_marker(folder: Path) -> None:
    assert read(folder) == {name: name.encode() for name in ("a.png", "z.png", "b/2.png", "b/deep/1.png")}
    assert list(read(folder)) == ["a.png", "z.png", "b/2.png", "b/deep/1.png"]
    assert read(f"file://{folder}") == read(folder)


def test_a_marker_is_no_input_wherever_it_lies(folder: Path) -> None:
    (folder / "b" / "_SUCCESS").touch()
    assert "b/_SUCCESS" not in read(folder)


def test_a_glob_gives_what_it_matches(folder: Path) -> None:
    assert list(read(folder / "*.png")) == ["a.png", "z.png"]
    assert list(read(folder / "**" / "*.png")) == ["a.png", "b/2.png", "b/deep/1.png", "z.png"]
    with pytest.raises(DataError, match="matches no file"):
        entries(str(folder / "*.jpg"))


def test_one_image_is_a_source(folder: Path) -> None:
    assert read(folder / "a.png") == {"a.png": b"a.png"}


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tgz", "x.tar.bz2", "x.tar.xz"])
def test_an_archive_gives_its_members_in_its_own_order(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    content = {"b.png": b"bbb", "in/a.png": png()}
    if name.endswith("zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.mkdir("in")
            for member, data in content.items():
                archive.writestr(member, data)
    else:
        mode = {"x.tar": "w", "x.tar.gz": "w:gz", "x.tgz": "w:gz", "x.tar.bz2": "w:bz2", "x.tar.xz": "w:xz"}[name]
        with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
            for member, data in content.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    assert read(path) == content
    assert list(read(path)) == list(content)
    # inside a folder an archive's members carry its name
    assert list(read(tmp_path)) == [f"{name}/{member}" for member in content]


@pytest.mark.parametrize("kind", ["bytes", "struct", "unnamed"])
def test_parquet_gives_a_row_an_entry(tmp_path: Path, kind: str) -> None:
    pictures = [png(i) for i in range(20)]
    if kind == "bytes":
        table = pa.table({"file_name": [f"{i}.png" for i in range(20)], "label": range(20), "image": pictures})
    elif kind == "struct":
        cells = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(pictures)]
        table = pa.table({"image": pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))})
    else:
        table = pa.table({"raw": pictures, "x": range(20)})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=6)
    names = [f"row {i}" if kind == "unnamed" else f"{i}.png" for i in range(20)]
    assert read(tmp_path / "x.parquet") == dict(zip(names, pictures, strict=True))


def test_parquet_without_image_bytes_says_which_columns_it_has(tmp_path: Path) -> None:
    pq.write_table(pa.table({"height": [1], "width": [2]}), tmp_path / "x.parquet")
    (reason,) = read(tmp_path / "x.parquet").values()
    assert "no column of image bytes (columns: height, width)" in str(reason)


def test_an_address_behind_fsspec_reads_like_a_folder(folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/bucket/", recursive=True)
    try:
        assert read("memory://bucket/batch") == read(folder)
        assert list(read("memory://bucket/batch/*.png")) == ["a.png", "z.png"]
        assert read("memory://bucket/batch/a.png") == {"a.png": b"a.png"}
    finally:
        memory.rm("/bucket", recursive=True)


def test_an_archive_behind_fsspec_is_streamed(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("a.png", b"aaa")
    memory.pipe("/bucket/x.zip", raw.getvalue())
    try:
        assert read("memory://bucket/x.zip") == {"a.png": b"aaa"}
        assert read("memory://bucket") == {"x.zip/a.png": b"aaa"}
    finally:
        memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize("source", ["missing", "missing/*.png", "memory://nowhere/at/all", "nosuchprotocol://x/y"])
def test_a_source_that_is_not_there_is_one_sentence(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        entries(source)
    assert "\n" not in str(caught.value)
    assert source.split("*")[0].rstrip("/") in str(caught.value)


def test_a_store_that_stops_answering_stops_the_job_and_blames_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/flaky/a.png", b"aaa")
    found = entries("memory://flaky")
    tries = []

    def broken(path: str, mode: str) -> None:
        tries.append(path)
        raise TimeoutError("no answer")

    monkeypatch.setattr(type(memory), "open", staticmethod(broken))
    with pytest.raises(SourceUnreachable, match="run it again to go on"):
        next(found).read()
    assert len(tries) == inputs.REMOTE_TRIES
    monkeypatch.undo()
    memory.rm("/flaky", recursive=True)


def test_an_address_is_shown_without_its_secrets() -> None:
    assert without_secrets("https://me:pass@host/x.zip?sig=abc") == "https://host/x.zip"
    assert without_secrets("s3://key:secret@bucket/a/b") == "s3://bucket/a/b"
    assert without_secrets("s3://bucket/a@b.png") == "s3://bucket/a@b.png"
    assert without_secrets("plain/folder?x@y") == "plain/folder?x@y"


def test_names_become_valid_text_of_bounded_length() -> None:
    assert as_text(os.fsdecode(b"caf\xe9.png")) == "caf\\xe9.png"
    assert as_text("grün\n<b>.png") == "grün\n<b>.png"
    as_text("\ud800").encode("utf-8")
    assert len(as_text("x" * 10**6)) == text.MAX_PATH


LEFT_BEHIND = (
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
    "._a.png",
    "__MACOSX/a.png",
    "@eaDir/a.png/SYNOPHOTO_THUMB_XL.jpg",
    ".ipynb_checkpoints/a-checkpoint.png",
    "b/.ipynb_checkpoints/2-checkpoint.png",
    "part-0.crc",
    "b/2.json",
    "b/2.txt",
    "b/2.cls",
    "labels.csv",
)


def with_clutter(folder: Path) -> Path:
    for name in LEFT_BEHIND:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"left behind")
    return folder


@pytest.mark.parametrize("kind", ["folder", "glob", "memory"])
def test_what_tools_leave_behind_is_skipped_and_counted(folder: Path, kind: str) -> None:
    with_clutter(folder)
    skipped: Counter[str] = Counter()
    memory = fsspec.filesystem("memory")
    try:
        if kind == "memory":
            memory.put(str(folder), "/left/", recursive=True)
        source = {"folder": str(folder), "glob": f"{folder}/**", "memory": "memory://left/batch"}[kind]
        names = sorted(entry.path for entry in entries(source, skipped=skipped))
    finally:
        if kind == "memory":
            memory.rm("/left", recursive=True)
    assert names == ["a.png", "b/2.png", "b/deep/1.png", "z.png"]
    assert skipped.total() >= (len(LEFT_BEHIND) + 1 if kind != "glob" else 8)  # a pattern leaves hidden files out


def test_a_text_of_no_picture_is_an_input(folder: Path) -> None:
    (folder / "notes.txt").write_bytes(b"notes")
    assert read(folder)["notes.txt"] == b"notes"


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A folder of links into the same cache, as Hugging Face lays it out."""
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    (snapshot / "ok").mkdir(parents=True)
    (blobs / "0a").write_bytes(b"0a")
    (blobs / "1b").write_bytes(png())
    pq.write_table(pa.table({"image": [b"row"]}), blobs / "2c")
    (snapshot / "ok" / "a.png").symlink_to("../../../blobs/0a")
    (snapshot / "b.png").symlink_to("../../blobs/1b")
    (snapshot / "c.parquet").symlink_to("../../blobs/2c")
    return snapshot


def test_links_out_of_a_batch_are_read_when_that_is_set_and_the_reason_names_the_setting(snapshot: Path) -> None:
    reasons = read(snapshot)
    assert list(reasons) == ["b.png", "c.parquet", "ok/a.png"]
    assert all("inbox.follow_links" in str(reason) and "--follow-links" in str(reason) for reason in reasons.values())
    found = {entry.path: entry.read() for entry in entries(str(snapshot), follow_links=True)}
    assert found == {"b.png": png(), "c.parquet/row 0": b"row", "ok/a.png": b"0a"}
    (snapshot / "zero.png").symlink_to("/dev/zero")
    last = [entry for entry in entries(str(snapshot), follow_links=True) if entry.path == "zero.png"]
    with pytest.raises(DataError, match="not a regular file"):
        last[0].read()


def test_a_link_that_is_named_as_the_source_is_read(snapshot: Path) -> None:
    assert read(snapshot / "b.png") == {"b.png": png()}
    assert read(snapshot / "c.parquet") == {"row 0": b"row"}


@pytest.mark.parametrize("when", ["before the folder is listed", "before the file is opened"])
def test_a_folder_that_is_replaced_by_a_link_meanwhile_leads_nowhere(folder: Path, tmp_path: Path, when: str) -> None:
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    for name in ("2.png", "deep/1.png"):
        (outside / name).write_bytes(b"from outside")
    found = entries(str(folder))
    listed = [next(found), next(found)] if when == "before the folder is listed" else list(found)
    (folder / "b").rename(tmp_path / "moved")
    (folder / "b").symlink_to(outside)
    for entry in [*listed, *found]:
        try:
            data = entry.read()
        except DataError:
            continue
        assert data != b"from outside"


@pytest.mark.parametrize("before", ["", "file://", "local://"])
def test_brackets_in_a_name_are_found_as_they_are(tmp_path: Path, before: str) -> None:
    top = tmp_path / "good parts [A]"
    top.mkdir()
    (top / "kratzer [2].png").write_bytes(b"2")
    assert read(f"{before}{top}") == {"kratzer [2].png": b"2"}
    assert read(f"{before}{top}/kratzer [2].png") == {"kratzer [2].png": b"2"}
    memory = fsspec.filesystem("memory")
    memory.pipe("/brackets/a [1]/b[2].png", b"2")
    try:
        assert read("memory://brackets/a [1]") == {"b[2].png": b"2"}
        assert read("memory://brackets/a [1]/b[2].png") == {"b[2].png": b"2"}
    finally:
        memory.rm("/brackets", recursive=True)


class Shop(http.server.BaseHTTPRequestHandler):
    """Answers for parts of its files, as a store does, and only where the query is right."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        data = self.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = (int(wanted[1]), int(wanted[2] or len(data)) + 1) if wanted else (0, len(data))
        part = data[start:end]
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(part)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
@marks("server")
def shop() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Shop) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_query_behind_a_name_is_none_of_it(shop: str, tmp_path: Path) -> None:
    packed, table = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.png", b"aaa")
    pq.write_table(pa.table({"image": [b"row"]}), table)
    signed = "?X-Amz-Credential=AKIA/2024/eu/s3&X-Amz-Date=12:30&sig=ab*c"
    Shop.files = {
        f"/d/x.zip{signed}": packed.getvalue(),
        "/d/hf.parquet?download=true": table.getvalue(),
        f"/d/one.png{signed}": b"one",
    }
    assert read(f"{shop}/d/x.zip{signed}") == {"a.png": b"aaa"}
    assert read(f"{shop}/d/hf.parquet?download=true") == {"row 0": b"row"}
    assert read(f"{shop}/d/one.png{signed}") == {"one.png": b"one"}
    with pytest.raises(DataError, match=r"no such folder or file") as caught:
        entries(f"{shop}/d/y.zip{signed}")
    assert "AKIA" not in str(caught.value)
    assert "30&sig" not in without_secrets(f"{shop}/d/x.zip{signed}")
    # as a browser or wget saves it
    (tmp_path / "hf.parquet?download=true").write_bytes(table.getvalue())
    assert read(tmp_path / "hf.parquet?download=true") == {"row 0": b"row"}
