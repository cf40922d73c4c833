"""What the watch scores with when somebody moved or deleted the alias, or the champion's files are gone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from densitywatch.errors import RegistryError
from densitywatch.registry.on_watch import KEPT, OnWatch, on_watch
from tests.registry.shelf import Shelf


def watch(shelf: Shelf) -> OnWatch:
    return on_watch(shelf.name, shelf.params, shelf.root)


def figure(found: OnWatch) -> float:
    return float((found.folder / "figure").read_text())


def copies(shelf: Shelf) -> list[Path]:
    return [path for path in (shelf.root / KEPT / shelf.model).iterdir() if path.is_dir()]


def test_a_move_by_hand_is_followed_and_noted_once(shelf: Shelf) -> None:
    assert watch(shelf) == OnWatch(shelf.root / "mlartifacts" / shelf.name / "1.0/artifacts/model", "", "")
    shelf.by_hand(2)
    seen = watch(shelf)
    assert (figure(seen), seen.stand_in) == (2.0, "")
    assert seen.moved == (
        f"{shelf.model}: the alias champion was moved to version 2 outside of densitywatch; the watch found it"
    )
    assert watch(shelf).moved == ""
    assert [(one.outcome, one.before, one.after) for one in shelf.history[:2]] == [
        ("moved by hand", "3", "2"),
        ("promoted", "2", "3"),
    ]


def test_without_the_alias_the_watch_keeps_the_detector_that_it_had(shelf: Shelf) -> None:
    shelf.by_hand(2)
    watch(shelf)
    shelf.by_hand(None)
    seen = watch(shelf)
    assert figure(seen) == 2.0, "not the newest one of the trail, which is version 3"
    assert seen.stand_in.endswith("the watch keeps version 2, the last one that it had verified")
    assert "no version with the alias champion" in seen.stand_in
    assert "was deleted" in seen.moved
    again = watch(shelf)
    assert (figure(again), again.moved) == (2.0, "")
    assert shelf.history[0].after is None
    assert [one.outcome for one in shelf.history[:3]] == ["moved by hand", "moved by hand", "promoted"]


@pytest.mark.parametrize("how", ["gone", "altered", "all gone", "version deleted"])
def test_without_its_files_the_champion_itself_goes_on_from_the_copy(shelf: Shelf, how: str) -> None:
    watch(shelf)
    if how == "altered":
        (shelf.root / "mlartifacts" / shelf.name / "1.0/artifacts/model/figure").write_text("0.0")
    elif how == "version deleted":
        shelf.client.delete_model_version(shelf.model, "3")
    else:
        for lost in (1.0, 2.0, 3.0) if how == "all gone" else (1.0,):
            shelf.lose(lost)
    for _ in range(2):
        seen = watch(shelf)
        assert figure(seen) == 1.0
        assert "the watch keeps version 3, the last one that it had verified" in seen.stand_in


def test_a_version_that_was_rolled_back_is_not_taken_from_the_copy(shelf: Shelf) -> None:
    watch(shelf)
    assert shelf.rollback() == 2
    shelf.lose(2.0)
    seen = watch(shelf)
    assert figure(seen) == 3.0, "version 1"
    assert seen.stand_in.endswith("version 1, the newest champion that can be verified, stood in")


def test_a_copy_that_was_altered_is_not_used(shelf: Shelf) -> None:
    watch(shelf)
    (copies(shelf)[0] / "figure").write_text("0.0")
    shelf.lose(1.0)
    assert figure(watch(shelf)) == 2.0
    for lost in (2.0, 3.0):
        shelf.lose(lost)
    with pytest.raises(RegistryError, match="no champion can be verified"):
        watch(shelf)


@pytest.mark.parametrize("note", ["", "[]", '{"version": 3, "content": "../.."}', '{"content": ""}'])
def test_a_note_that_says_nothing_of_use_is_no_copy(shelf: Shelf, note: str) -> None:
    watch(shelf)
    (shelf.root / KEPT / shelf.model / "version.json").write_text(note)
    shelf.lose(1.0)
    assert figure(watch(shelf)) == 2.0


def test_one_copy_is_kept_and_a_lost_one_is_made_again(shelf: Shelf) -> None:
    watch(shelf)
    assert len(copies(shelf)) == 1
    shelf.add(0.5)
    shelf.promote()
    watch(shelf)
    (copy,) = copies(shelf)
    assert (copy / "figure").read_text() == "0.5"
    shutil.rmtree(copy)
    watch(shelf)
    assert (copies(shelf)[0] / "figure").read_text() == "0.5"


def test_a_model_without_champion_is_one_sentence_that_says_what_to_do(shelf: Shelf) -> None:
    with pytest.raises(RegistryError, match=r"no version with the alias champion; run .densitywatch promote nobody"):
        on_watch("nobody", shelf.params, shelf.root)
