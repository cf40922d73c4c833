"""data.group: what `auto` finds in made-up folders, and what the other rules give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pytest

from densitywatch.data.groups.choose import grouped, put_in_order
from densitywatch.data.groups.likeness import Looks, near_duplicates
from densitywatch.data.groups.rules import taken
from densitywatch.data.image_table import Image
from densitywatch.errors import DataError
from tests.data.groups.scenes import SIZE, scenes
from tests.data.image_rows import table_of

SCENES, FRAMES = 40, 6
WHERE = [(n // FRAMES, n % FRAMES) for n in range(SCENES * FRAMES)]
"""Scene and frame of each image."""
Name = Callable[[int, int], str]


class Found(NamedTuple):
    """What `grouped` says, the name of every image's group, and its place in the order."""

    rule: str | None
    words: str
    warning: str
    names: list[str]
    order: list[int]


def find(setting: str | None, known: Sequence[Image], looks: Looks) -> Found:
    """The groups of `known`; an image without one has an empty name."""
    with table_of(known, looks) as table:
        told = grouped(setting, table)
        put_in_order(table, told.rule)
        rows = table.execute(
            """SELECT coalesce(name, ''), in_order.place FROM image JOIN in_order USING (number)
            LEFT JOIN named USING (number) ORDER BY number"""
        ).fetchall()
    return Found(told.rule, told.words, told.warning, [name for name, _ in rows], [place for _, place in rows])


def look(setting: str | None, name: Name, *, frames: int = FRAMES, source: Name | None = None) -> Found:
    """The groups of scenes whose frames are named by `name`, given in another order than that of the names."""
    where = [(n // frames, n % frames) for n in range(SCENES * frames)]
    mixed = np.random.default_rng(5).permutation(len(where))
    known = [
        Image(0, name(*where[n]), source=source(*where[n]) if source else "", taken=taken(time(*where[n])))
        for n in mixed
    ]
    found = find(setting, known, Looks.of(scenes(SCENES, frames)[mixed]))
    names = [""] * len(where)
    for n, group in zip(mixed, found.names, strict=True):
        names[n] = group
    return found._replace(names=names)


def time(scene: int, frame: int) -> str:
    """A scene an hour, a frame every ten seconds."""
    return f"2026:03:{1 + scene // 24:02d} {scene % 24:02d}:00:{10 * frame:02d}"


def same_scene(found: Found) -> bool:
    """Whether two images are in one group exactly when they are of one scene."""
    pairs = set(zip(found.names, (scene for scene, _ in WHERE), strict=True))
    return len(pairs) == len(set(found.names)) == SCENES


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        (lambda s, f: f"scene_{s}/{f:06d}.png", "folder"),
        (lambda s, f: f"scene_{s}_frame_{f}.png", r"^(.*\d\D+)\d+\D*$"),
        (lambda s, f: f"cam1-{s:04d}-{f}.jpg", r"^(.*\d\D+)\d+\D*$"),
        (lambda s, f: f"{s:03d}_{f}_{f + 3}.png", r"^(.*\d\D+)\d+\D+\d+\D*$"),
        (lambda s, f: f"IMG_{s * FRAMES + f:05d}.jpg", "exif:1"),
    ],
)
def test_auto_finds_the_rule_that_explains_why_neighbours_are_alike(name: Name, rule: str) -> None:
    found = look("auto", name)
    assert found.rule == rule
    assert same_scene(found)
    assert f"data.group: {rule} explains it: 40 groups, 6 images in the middle one" in found.words
    assert "of random pairs it is 1%" in found.words
    assert not found.warning


def test_auto_goes_by_likeness_where_names_and_times_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "time", lambda scene, frame: "")
    found = look("auto", lambda s, f: f"IMG_{s * FRAMES + f:05d}.jpg")
    assert found.rule == "near_duplicates"
    # scenes that look alike may be joined; no scene is cut
    assert all(len({found.names[n] for n, (s, _) in enumerate(WHERE) if s == scene}) == 1 for scene in range(SCENES))
    assert len(set(found.names)) > 0.7 * SCENES


def test_auto_groups_nothing_where_neighbours_are_no_more_alike_than_others() -> None:
    found = look("auto", lambda s, f: f"scene_{s}_frame_{f}.png", frames=1)
    assert found.rule is None
    assert set(found.names) == {""}
    assert "So the images are not grouped." in found.words
    assert not found.warning


def test_a_fixed_camera_whose_images_all_look_alike_is_not_one_scene() -> None:
    one = scenes(1, 300, noise=4.0)
    known = [Image(0, f"img_{n:04d}.png") for n in range(300)]
    assert find("auto", known, Looks.of(one)).rule is None
    assert not find(None, known, Looks.of(one)).warning


def test_auto_warns_where_it_finds_likeness_and_no_rule() -> None:
    drifting = np.linspace(0, 200, 400)[:, None, None, None] + np.zeros((400, 1, SIZE, SIZE))
    known = [Image(0, f"img_{n:04d}.png") for n in range(400)]
    found = find("auto", known, Looks.of(drifting.astype(np.uint8)))
    assert found.rule is None
    assert found.warning.startswith("data.group: auto finds neighbours in name order alike")


def test_without_a_rule_alike_neighbours_are_a_warning_of_one_line() -> None:
    found = look(None, lambda s, f: f"scene_{s}_frame_{f}.png")
    assert found.rule is None
    assert set(found.names) == {""}
    assert "of neighbours in name order are nearly equal (1% of random pairs are), and data.group is not set" in (
        found.warning
    )
    assert "\n" not in found.warning


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("folder", lambda s, f: f"scene_{s}/{f}.png"),
        (r"scene_(\d+)", lambda s, f: f"{f}_scene_{s}.png"),
        ("exif:10", lambda s, f: f"{f}_{s}.png"),
    ],
)
def test_a_rule_that_is_named_is_used(setting: str, name: Name) -> None:
    found = look(setting, name)
    assert found.rule == setting
    assert same_scene(found)


def test_blocks_of_time_begin_with_their_first_image_and_last_the_minutes_asked_for() -> None:
    minutes = [0, 5, 9, 10, 12, 19, 25]
    known = [Image(0, f"{n}.jpg", taken=f"2026-01-01 10:{minute:02d}:00") for n, minute in enumerate(minutes)]
    found = find("exif:10", [*known, Image(0, "none.jpg")], Looks.of(scenes(len(known) + 1, 1)))
    assert found.names[:-1] == ["2026-01-01 10:00:00"] * 3 + ["2026-01-01 10:10:00"] * 3 + ["2026-01-01 10:25:00"]
    assert found.names[-1] == "none.jpg"
    assert "1 images are in none and count by themselves" in found.words
    assert found.order == [2, 3, 4, 5, 6, 7, 8, 1]


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("folder", "put the images of each group into a folder of its own"),
        ("exif:5", "no image has an EXIF time"),
        (r"cam(\d+)", "correct the pattern; it is searched in the path without its extension"),
        ("near_duplicates", "no image looks like another"),
    ],
)
def test_a_rule_that_finds_nothing_is_a_sentence(setting: str, sentence: str) -> None:
    known = [Image(0, f"{n}.png") for n in range(30)]
    with pytest.raises(DataError, match=f"finds no group in 30 images; {sentence}"):
        find(setting, known, Looks.of(scenes(30, 1)))


def test_groups_of_two_sources_do_not_mix() -> None:
    found = look(r"scene_(\d+)", lambda s, f: f"{f % 2}/scene_{s}_{f}.png", source=lambda s, f: f"camera {f % 2}")
    assert len(set(found.names)) == 2 * SCENES
    assert found.names[:2] == ["camera 0: 0", "camera 1: 0"]
    blocks = look("exif:60", lambda s, f: f"{f % 2}/scene_{s}_{f}.png", source=lambda s, f: f"camera {f % 2}")
    assert len(set(blocks.names)) == 2 * SCENES


def test_near_duplicates_are_connected_exactly_when_their_hashes_differ_in_three_bits_at_most() -> None:
    rng = np.random.default_rng(3)
    hashes = rng.integers(0, 2**63, 60, dtype=np.uint64)
    for n in range(30):  # copies with 0 to 5 bits changed
        bits = rng.choice(64, n % 6, replace=False)
        hashes[30 + n] = hashes[n] ^ np.uint64(sum(1 << int(bit) for bit in bits))
    hashes[0] = hashes[30] = hashes[31]
    with table_of([Image(0, f"{n}") for n in range(60)], Looks(np.zeros((60, 64), dtype=np.uint8), hashes)) as table:
        found = set(map(frozenset, near_duplicates(table)))
    close = {frozenset((i, j)) for i in range(60) for j in range(i) if int(hashes[i] ^ hashes[j]).bit_count() <= 3}
    assert found <= close
    assert components(found) == components(close)
    assert len(close) > 15


def components(pairs: set[frozenset[int]]) -> set[frozenset[int]]:
    """The sets that the pairs connect."""
    sets = [set(pair) for pair in pairs]
    for _ in sets:
        for one in sets:
            for other in sets:
                if one is not other and one & other:
                    one |= other
                    other.clear()
    return {frozenset(one) for one in sets if one}
