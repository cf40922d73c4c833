"""Whether what a source holds is what it held: names and contents count, dates do not."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from densitywatch.data import look as module
from densitywatch.data.look import is_changed, look
from densitywatch.errors import DataError
from densitywatch.params import Params
from tests.data.conftest import MakeParams


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder outside of the project."""
    folder = tmp_path / "camera"
    for name in ("good/1.png", "good/2.png", "bad/1.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"bytes of {name}".encode())
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    return root


@pytest.fixture
def params(make_params: MakeParams, images: Path) -> Params:
    return make_params(source="folder", address=str(images))


def noted(root: Path) -> Any:
    return json.loads((root / "data" / "source.json").read_text())


def add(folder: Path) -> None:
    (folder / "good" / "3.png").write_bytes(b"new")


def add_below(folder: Path) -> None:
    (folder / "good" / "monday" / "late").mkdir(parents=True)
    (folder / "good" / "monday" / "late" / "1.png").write_bytes(b"new")


def remove(folder: Path) -> None:
    (folder / "bad" / "1.png").unlink()


def rename(folder: Path) -> None:
    (folder / "bad" / "1.png").rename(folder / "bad" / "2.png")


def move_to_another_class(folder: Path) -> None:
    (folder / "bad" / "1.png").rename(folder / "good" / "9.png")


def write_over(folder: Path) -> None:
    """The same name, size and date, as `cp -p` and many cameras leave them."""
    file = folder / "bad" / "1.png"
    before = file.stat()
    file.write_bytes(file.read_bytes()[::-1])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def put_in_its_place(folder: Path) -> None:
    """The same by rename, as `rsync -t` does it."""
    file = folder / "bad" / "1.png"
    before = file.stat()
    new = file.with_name("new")
    new.write_bytes(file.read_bytes()[::-1])
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.rename(file)


def swap_names(folder: Path) -> None:
    (folder / "good" / "1.png").rename(folder / "good" / "between")
    (folder / "good" / "2.png").rename(folder / "good" / "1.png")
    (folder / "good" / "between").rename(folder / "good" / "2.png")


@pytest.mark.parametrize("settled", [True, False])
@pytest.mark.parametrize(
    "change", [add, add_below, remove, rename, move_to_another_class, write_over, put_in_its_place, swap_names]
)
def test_what_was_added_removed_renamed_or_replaced_is_noticed(
    change: Callable[[Path], None],
    settled: bool,
    project: Path,
    params: Params,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if settled:
        monkeypatch.setattr(module, "SETTLED", 0)  # so that the files' digests are remembered
    look(params, project)
    before = noted(project)
    assert not is_changed(params, project)
    change(images)
    assert is_changed(params, project)
    assert noted(project) == before, "asking changes nothing"
    look(params, project)
    assert noted(project)["digest"] != before["digest"]
    assert not is_changed(params, project)


def touch(folder: Path) -> None:
    os.utime(folder / "good" / "1.png")


def write_the_same(folder: Path) -> None:
    file = folder / "good" / "1.png"
    file.write_bytes(file.read_bytes())


def copy_all(folder: Path) -> None:
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    shutil.rmtree(folder)
    copy.rename(folder)


def be_looked_at(folder: Path) -> None:
    (folder / ".DS_Store").write_bytes(b"a file manager was here")
    (folder / "good" / "Thumbs.db").write_bytes(b"another one")
    (folder / "@eaDir").mkdir()
    (folder / "@eaDir" / "1.png").write_bytes(b"a network drive's preview")
    (folder / "empty").mkdir()


@pytest.mark.parametrize("change", [touch, write_the_same, copy_all, be_looked_at])
def test_the_same_files_are_the_same_whatever_their_dates_and_what_tools_leave_next_to_them(
    change: Callable[[Path], None], project: Path, params: Params, images: Path
) -> None:
    look(params, project)
    note = project / "data" / "source.json"
    before = note.read_bytes(), note.stat().st_mtime_ns
    change(images)
    assert not is_changed(params, project)
    look(params, project)
    assert (note.read_bytes(), note.stat().st_mtime_ns) == before


def test_a_file_is_read_once_and_again_when_it_may_have_changed(
    project: Path, params: Params, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def file_digest(path: Path) -> str:
        read.append(path.relative_to(images).as_posix())
        return "the same"

    monkeypatch.setattr(module, "file_digest", file_digest)
    look(params, project)
    assert sorted(read) == ["bad/1.png", "good/1.png", "good/2.png"]
    look(params, project)
    assert len(read) == 6, "written a moment ago, a file could change again without another time"
    monkeypatch.setattr(module, "SETTLED", 0)
    look(params, project)
    read.clear()
    look(params, project)
    assert read == []
    touch(images)
    look(params, project)
    assert read == ["good/1.png"]


@pytest.mark.parametrize("kept", ["{", "[]", '{"address": null, "files": {}}', '{"files": {"good/1.png": 7}}'])
def test_a_memory_that_cannot_be_used_costs_a_reading_and_no_more(
    kept: str, project: Path, params: Params, images: Path
) -> None:
    look(params, project)
    (project / "var").mkdir(exist_ok=True)
    (project / "var" / "look.json").write_text(kept)
    assert not is_changed(params, project)
    add(images)
    assert is_changed(params, project)


def test_the_memory_of_another_address_is_not_taken_for_this_ones(
    project: Path, make_params: MakeParams, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLED", 0)
    other = images.with_name("other")
    shutil.copytree(images, other)
    write_over(other)
    look(make_params(source="folder", address=str(images)), project)
    first = noted(project)["digest"]
    look(make_params(source="folder", address=str(other)), project)
    assert noted(project)["digest"] != first


def unplug(folder: Path) -> None:
    shutil.rmtree(folder)


def unmount(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


GONE = [(unplug, "is not there"), (unmount, "holds no files")]


@pytest.mark.parametrize(("change", "why"), GONE)
def test_an_address_that_is_gone_is_said_in_one_line_and_what_was_fetched_stays(
    change: Callable[[Path], None],
    why: str,
    project: Path,
    params: Params,
    images: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    look(params, project)
    before = noted(project)
    change(images)
    shutil.rmtree(project / "var", ignore_errors=True)  # as in another checkout, which has the dataset from a remote
    assert not is_changed(params, project)
    look(params, project)
    assert noted(project) == before
    line = f"data.address: {images} {why}; going on with the 3 files that were there at the last look\n"
    assert capsys.readouterr().err == 2 * line


@pytest.mark.parametrize(("change", "why"), GONE)
def test_an_address_that_was_never_there_or_is_another_one_is_an_error(
    change: Callable[[Path], None], why: str, project: Path, params: Params, images: Path, make_params: MakeParams
) -> None:
    look(params, project)
    other = images.with_name("other")
    shutil.copytree(images, other)
    change(other)
    said = f"^data.address: {other} {why}; put images there or correct the address$"
    with pytest.raises(DataError, match=said):
        look(make_params(source="folder", address=str(other)), project)
    (project / "data" / "source.json").unlink()
    with pytest.raises(DataError, match=said):
        look(make_params(source="folder", address=str(other)), project)


def test_a_folder_that_cannot_be_listed_is_said_not_taken_for_empty(
    project: Path, params: Params, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    look(params, project)
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if Path(path) in refused:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    refused = {images}
    assert not is_changed(params, project)
    assert "cannot be read: Permission denied; going on with the 3 files" in capsys.readouterr().err
    refused = {images / "good"}
    assert is_changed(params, project)


def test_links_count_by_what_they_lead_to_and_a_pipe_is_not_waited_for(
    project: Path, params: Params, images: Path
) -> None:
    outside = images.with_name("blob")
    outside.write_bytes(b"one")
    (images / "good" / "link.png").symlink_to(outside)
    (images / "good" / "nowhere.png").symlink_to("is/not/there")
    (images / "good" / "loop.png").symlink_to("loop.png")
    (images / "good" / "folder").symlink_to("..")
    os.mkfifo(images / "pipe.png")
    look(params, project)
    assert not is_changed(params, project)
    outside.write_bytes(b"two")
    assert is_changed(params, project)


def test_names_that_are_no_text_are_names(project: Path, params: Params, images: Path) -> None:
    (images / os.fsdecode(b"\xff\xfe.png")).write_bytes(b"one")
    (images / "line\nbreak.png").write_bytes(b"two")
    look(params, project)
    assert not is_changed(params, project)
    (images / os.fsdecode(b"\xff\xfe.png")).rename(images / os.fsdecode(b"\xff\xfd.png"))
    assert is_changed(params, project)


def test_a_relative_address_is_taken_from_the_project_and_a_file_counts_by_its_content(
    project: Path, make_params: MakeParams, images: Path
) -> None:
    archive = project / "images.zip"
    archive.write_bytes(b"one")
    params = make_params(source="folder", address="images.zip")
    look(params, project)
    os.utime(archive)
    assert not is_changed(params, project)
    archive.write_bytes(b"two")
    assert is_changed(params, project)
    look(make_params(source="folder", address=f"file://{images}"), project)
    assert noted(project)["files"] == 3


def test_a_glob_counts_by_what_it_matches(project: Path, make_params: MakeParams, images: Path) -> None:
    params = make_params(source="folder", address=f"{images}/**/*.png")
    look(params, project)
    assert noted(project)["files"] == 3
    (images / "note.txt").write_text("not matched")
    assert not is_changed(params, project)
    (images / "new.png").write_bytes(b"one more")
    assert is_changed(params, project)
    with pytest.raises(DataError, match="holds no files"):
        look(make_params(source="folder", address=f"{images}/*.bmp"), project)


def test_a_bucket_is_asked_for_its_listing_alone(
    project: Path, make_params: MakeParams, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    packed = images.with_name("images.zip")

    def pack(**members: str) -> None:
        with zipfile.ZipFile(packed, "w") as file:
            for name, content in members.items():
                file.writestr(f"{name}.png", content)

    monkeypatch.setattr(module, "file_digest", None)  # no content is read
    pack(one="1", two="2")
    params = make_params(source="folder", address=f"zip://::file://{packed}")
    look(params, project)
    assert noted(project)["files"] == 2
    pack(two="2", one="1")
    assert not is_changed(params, project)
    pack(one="1", two="3")
    assert is_changed(params, project)

    store = fsspec.filesystem("memory")
    store.pipe_file("/looked/a.png", b"one")
    params = make_params(source="folder", address="memory://looked")
    look(params, project)
    assert not is_changed(params, project)
    store.pipe_file("/looked/b.png", b"two")
    assert is_changed(params, project)
    store.rm("/looked", recursive=True)
    with pytest.raises(DataError, match=r"^data.address: memory://nothing-here .*; put images there or correct the"):
        look(make_params(source="folder", address="memory://nothing-here"), project)


@pytest.mark.parametrize(
    "data",
    [
        {"source": "fashion_mnist"},
        {"source": "photos"},
        {"source": "folder", "address": "https://localhost:1/images.zip"},
        {"source": "folder", "address": "zip://::https://localhost:1/images.zip"},
    ],
)
def test_what_was_downloaded_is_not_asked_again(data: dict[str, str], project: Path, make_params: MakeParams) -> None:
    params = make_params(**data)
    look(params, project)
    assert noted(project) == {"source": data["source"], "address": data.get("address")}
    assert not is_changed(params, project)
    assert not (project / "var").exists()
