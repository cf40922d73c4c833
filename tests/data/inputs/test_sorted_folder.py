"""Which folders are kinds, where their masks are, and what is said of folders that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from densitywatch.data.inputs.sorted_folder import MasksOfKind, find_layout
from densitywatch.errors import DataError


def folders(top: Path, *names: str) -> Path:
    for name in names:
        (top / name).mkdir(parents=True)
    return top


def test_a_folder_with_good_and_kinds_next_to_it(tmp_path: Path) -> None:
    found = find_layout(folders(tmp_path, "zebra", "good", "crack", "ground_truth/crack", "@eaDir", ".cache"))
    assert list(found.kinds) == ["good", "crack", "zebra"]
    assert found.masks == {"crack": tmp_path / "ground_truth" / "crack"}
    assert found.left_out == []


@pytest.mark.parametrize("given", ["set", "set/test"])
def test_mvtecs_layout_is_understood_from_test_and_from_its_parent(tmp_path: Path, given: str) -> None:
    top = folders(tmp_path / "set", "train/good", "test/good", "test/crack", "ground_truth/crack")
    found = find_layout(tmp_path / given)
    assert found.kinds == {"good": top / "test/good", "crack": top / "test/crack"}
    assert found.masks == {"crack": top / "ground_truth/crack"}


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (["crack"], "has no folder good/, nor test/good/; put good images"),
        (["good"], "has good/ and no other folder; put the bad images into a folder for each kind"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(tmp_path: Path, made: list[str], wanted: str) -> None:
    with pytest.raises(DataError, match=wanted):
        find_layout(folders(tmp_path / "set", *made))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(b"x")
    with pytest.raises(DataError, match="a file; unpack it"):
        find_layout(tmp_path / "set.zip")
    with pytest.raises(DataError, match="nowhere: no such folder; give one that has good/"):
        find_layout(tmp_path / "nowhere")


def test_links_to_folders_are_named_and_followed_only_when_asked_for(tmp_path: Path) -> None:
    top = folders(tmp_path / "set", "good", "crack", "ground_truth")
    other = folders(tmp_path / "other", "images", "masks")
    (top / "linked").symlink_to(other / "images")
    (top / "ground_truth/crack").symlink_to(other / "masks")
    found = find_layout(top)
    assert (list(found.kinds), found.masks) == (["good", "crack"], {})
    assert [name for name, reason in found.left_out if "not followed" in reason] == ["linked", "ground_truth/crack"]
    assert list(find_layout(top, follow_links=True).kinds) == ["good", "crack", "linked"]
    assert list(find_layout(top, follow_links=True).masks) == ["crack"]


def test_files_in_no_kind_and_masks_of_no_kind_are_named(tmp_path: Path) -> None:
    top = folders(tmp_path, "good", "crack", "ground_truth/dent")
    for name in ("stray.png", "ground_truth/flat.png", ".DS_Store"):
        (top / name).write_bytes(b"x")
    assert [name for name, _ in find_layout(top).left_out] == [
        "stray.png",
        "ground_truth/dent",
        "ground_truth/flat.png",
    ]


def test_a_mask_belongs_to_the_image_of_its_name_with_or_without_mask_behind_it(tmp_path: Path) -> None:
    folders(tmp_path, "inner")
    for name in ("000_mask.png", "001.png", "inner/a.b_mask.png", "lost_mask.png", "001_MASK.bmp"):
        (tmp_path / name).write_bytes(b"x")
    masks = MasksOfKind(tmp_path)
    found = {image: masks.of(image) for image in ("000.jpg", "001.png", "inner/a.b.jpg", "none.png")}
    assert {image: entry and entry.path for image, entry in found.items()} == {
        "000.jpg": "000_mask.png",
        "001.png": "001.png",
        "inner/a.b.jpg": "inner/a.b_mask.png",
        "none.png": None,
    }
    assert masks.unusable == [("001_MASK.bmp", "001.png is a mask of the same image")]
    assert masks.without_image() == [("lost_mask.png", "a mask without an image of its name")]
