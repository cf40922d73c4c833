"""The rules by which images are grouped, where several sources are joined."""

from __future__ import annotations

import numpy as np

from densitywatch.data.groups.likeness import Looks, Neighbours
from densitywatch.data.groups.rules import Known, by_folder, by_likeness


def test_images_of_one_source_are_joined_although_another_source_has_the_same_picture() -> None:
    images = [Known("a/1.png", "a"), Known("a/2.png", "a"), Known("b/1.png", "b"), Known("a/3.png", "a")]
    hashes = np.array([0b111, 0b110, 0b111, 0xFFFF_FFFF], dtype=np.uint64)
    nothing = np.zeros(0, dtype=np.int64)
    near = Neighbours(np.arange(4), np.array([0, 0, 1, 0]), np.nan, nothing, nothing, np.zeros(0, dtype=bool))
    names = by_likeness(images, Looks(np.zeros((4, 64), dtype=np.uint8), hashes), near)
    assert names == ["a/1.png", "a/1.png", "", ""]


def test_images_at_the_top_of_a_source_are_in_no_folder_whether_there_is_one_source_or_more() -> None:
    assert by_folder([Known("1.png"), Known("scene/2.png")]) == ["", "scene"]
    joined = [Known("a/1.png", "a"), Known("a/scene/2.png", "a"), Known("b/1.png", "b")]
    assert by_folder(joined) == ["", "a/scene", ""]
