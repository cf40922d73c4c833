"""The rules by which images are grouped, where several sources are joined."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from densitywatch.data.groups.choose import grouped
from densitywatch.data.groups.likeness import Looks, Neighbours, name_key
from densitywatch.data.groups.rules import by_folder, by_likeness
from densitywatch.data.image_table import Image
from tests.data.image_rows import table_of


def image(path: str, source: str = "") -> Image:
    return Image(0, path, source=source)


def test_images_of_one_source_are_joined_although_another_source_has_the_same_picture() -> None:
    images = [image("a/1.png", "a"), image("a/2.png", "a"), image("b/1.png", "b"), image("a/3.png", "a")]
    hashes = np.array([0b111, 0b110, 0b111, 0xFFFF_FFFF], dtype=np.uint64)
    near = Neighbours(np.array([3, 4]), np.nan, np.zeros(2, dtype=bool))
    with table_of(images, Looks(np.zeros((4, 64), dtype=np.uint8), hashes)) as table:
        assert sorted(by_likeness(table, near)) == [(0, "a/1.png"), (1, "a/1.png")]


def test_images_at_the_top_of_a_source_are_in_no_folder_whether_there_is_one_source_or_more() -> None:
    with table_of([image("1.png"), image("scene/2.png")]) as table:
        assert list(by_folder(table)) == [(1, "scene")]
    with table_of([image("a/1.png", "a"), image("a/scene/2.png", "a"), image("b/1.png", "b")]) as table:
        assert list(by_folder(table)) == [(1, "a/scene")]


@given(st.lists(st.text(st.sampled_from("0129٣ab_/é\0\U0001f600"), max_size=8), min_size=2, max_size=2))
def test_names_sort_as_a_person_sorts_them(names: list[str]) -> None:
    def as_person(path: str) -> list[tuple[int, int, str]]:
        return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", path) if part]

    one, other = names
    assert (name_key(one) < name_key(other)) == (as_person(one) < as_person(other))


def test_names_of_any_letters_are_kept_as_they_are() -> None:
    """A name ends at its NUL for some functions of SQL."""
    names = ["a\0b/1.png", "a\0c/1.png", "a'; DROP TABLE image; --/1.png", "\U0001f600/1.png"]
    with table_of([image(name) for name in names]) as table:
        assert [name for _, name in by_folder(table)] == [name.removesuffix("/1.png") for name in names]
        told = grouped("folder", table)
        assert told.words.startswith("data.group is folder: 4 groups")
        assert {name for (name,) in table.execute("SELECT name FROM named")} == {
            name.removesuffix("/1.png") for name in names
        }


def test_names_of_groups_of_several_sources_keep_their_letters_too() -> None:
    with table_of([image("x\0y/a\0b/1.png", "x\0y"), image("z/a\0b/1.png", "z")]) as table:
        grouped("folder", table)
        assert [name for (name,) in table.execute("SELECT name FROM named ORDER BY number")] == [
            "x\0y: x\0y/a\0b", "z: z/a\0b",
        ]  # fmt: skip
