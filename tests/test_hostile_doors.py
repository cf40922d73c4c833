"""A few hostile inputs at every door; `make faults` tries thousands (tests/faults/hostile)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.faults.hostile import attempt as trying
from tests.faults.hostile.attempt import Door, Enter, attempt, lay
from tests.faults.hostile.doors import all_doors, find_door

SLOW = (
    "batch to score",
    "detector",
    "request to a served model",
    "results read back",
    "results that are checked",
    "table of verdicts",
)
"""Doors that take some seconds, most of them to get ready."""
DOORS = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in all_doors()]


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = lay(tmp_path)
    (found / "tmp").mkdir()
    monkeypatch.chdir(found)
    monkeypatch.setattr(tempfile, "tempdir", str(found / "tmp"))
    return found


@pytest.mark.parametrize("name", DOORS)
def test_hostile_inputs_are_taken_or_refused_with_a_sentence(name: str, inside: Path) -> None:
    door = find_door(name)
    enter = door.opened(inside)

    @settings(
        max_examples=door.quick, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(door.cases)
    def every(case: object) -> None:
        tried = attempt(door, enter, case, inside.parent)
        assert tried.outcome in ("taken", "refused"), f"{tried.outcome}: {tried.why}"

    every()


def test_a_whole_run_has_at_least_five_thousand_inputs() -> None:
    assert sum(door.share for door in all_doors().values()) >= 5000


def _leaves(inside: Path, enter: Enter) -> trying.Tried:
    door = Door("a test", trying.SearchStrategy(), lambda _: enter, seconds=0.3)
    return attempt(door, enter, None, inside.parent)


def test_what_is_written_next_to_the_folder_is_an_escape(inside: Path) -> None:
    def over_python(_: object) -> None:
        (inside.parent / "outside" / "escaped").write_text("")

    assert _leaves(inside, over_python).outcome == "escaped"
    (inside.parent / "outside" / "escaped").unlink()
    assert _leaves(inside, lambda _: (inside / "fine").write_text("")).outcome == "taken"


def test_a_program_that_is_started_or_a_pickle_that_is_loaded_is_an_escape(inside: Path) -> None:
    import pickle
    import subprocess

    assert _leaves(inside, lambda _: subprocess.run(["true"], check=True)).outcome == "escaped"
    whole = pickle.dumps(Path("x"))
    assert _leaves(inside, lambda _: pickle.loads(whole)).outcome == "escaped"


def test_an_exception_that_is_not_documented_is_a_crash_and_so_is_an_error_of_several_lines(inside: Path) -> None:
    from densitywatch.errors import DataError

    def crash(_: object) -> None:
        raise KeyError("x")

    def refuse(_: object) -> None:
        raise DataError("one sentence")

    def say_nothing(_: object) -> None:
        raise DataError("")

    assert [_leaves(inside, enter).outcome for enter in (crash, refuse, say_nothing)] == [
        "crashed",
        "refused",
        "crashed",
    ]


def test_a_case_that_computes_for_ever_hangs(inside: Path) -> None:
    def compute(_: object) -> None:
        while True:
            pass

    assert _leaves(inside, compute).outcome == "hung"
