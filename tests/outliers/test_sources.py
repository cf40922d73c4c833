from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densitywatch import text
from densitywatch.data.entries import SourceUnreachable
from densitywatch.errors import DataError
from densitywatch.outliers import sources
from densitywatch.outliers.sources import entries, without_secrets
from densitywatch.text import as_text

from .standin import png


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
    assert len(tries) == sources.REMOTE_TRIES
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
