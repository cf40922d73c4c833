from __future__ import annotations

from collections import Counter

import pytest

from densitywatch.data.inputs.clutter import is_clutter, kind_of_clutter, sample_key, skipped_line, split_clutter


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (".DS_Store", ".DS_Store"),
        ("ok/.ds_store", ".ds_store"),
        ("ok/Thumbs.db", "Thumbs.db"),
        ("ok/desktop.ini", "desktop.ini"),
        ("ok/._001.png", "._*"),
        ("__MACOSX/ok/001.png", "__MACOSX/"),
        ("__MACOSX\\ok\\001.png", "__MACOSX/"),
        ("ok/@eaDir/001.png/SYNOPHOTO_THUMB_XL.jpg", "@eaDir/"),
        (".ipynb_checkpoints/001-checkpoint.png", ".ipynb_checkpoints/"),
        ("ok/.ipynb_checkpoints/001-checkpoint.png", ".ipynb_checkpoints/"),
        (".Trash-1000/files/001.png", ".Trash-*/"),
        ("part-0.png.crc", "*.crc"),
        ("._SUCCESS.crc", "._*"),
        ("_SUCCESS", "_SUCCESS"),
        ("labels.csv", "labels.csv"),
        ("license.txt", "license.txt"),
    ],
)
def test_clutter_is_known_by_its_name(name: str, kind: str) -> None:
    assert kind_of_clutter(name) == kind
    assert is_clutter(name)


@pytest.mark.parametrize(
    "name",
    [
        "ok/001.png",
        "_success.png",
        "@eaDir",
        "thumbs/001.jpg",
        "a.crc.png",
        "notes.txt",
        ".hidden/1.png",
        "DS_Store/1.png",
    ],
)
def test_pictures_and_unknown_files_are_no_clutter(name: str) -> None:
    assert not is_clutter(name)


def test_a_side_car_is_skipped_next_to_its_picture_and_nowhere_else() -> None:
    names = ["a/0.cls", "a/0.json", "a/0.png", "a/0.TXT", "a/1.seg.json", "a/1.jpg", "b/0.json", "notes.txt", "c/x.txt"]
    kept, skipped = split_clutter(names)
    assert kept == ["a/0.png", "a/1.jpg", "b/0.json", "notes.txt", "c/x.txt"]
    assert skipped == {
        "*.cls next to a picture": 1, "*.json next to a picture": 2, "*.txt next to a picture": 1
    }  # fmt: skip


def test_the_key_of_a_sample_ends_at_the_first_dot_of_the_files_name() -> None:
    assert sample_key("a.b/0001.left.png") == sample_key("a.b/0001.json") == "a.b/0001"


def test_what_was_skipped_is_one_line() -> None:
    assert skipped_line(Counter()) is None
    assert skipped_line(Counter({"._*": 1200, ".DS_Store": 2})) == (
        "skipped 1,202 files that are not images by their names: ._* (1,200), .DS_Store (2)"
    )
    assert skipped_line(Counter({"_SUCCESS": 1})) == "skipped 1 file that is not an image by its name: _SUCCESS (1)"
    many = skipped_line(Counter({f"kind{number}": 1 for number in range(9)} | {"icon\r": 3}))
    assert many is not None
    assert "4 other kinds" in many
    assert "\r" not in many
