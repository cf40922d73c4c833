"""The table that `make faults` ends with counts what happened, and keeps what it was not asked to try again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults.tally import FIGURES, TABLE, Tally


def test_a_fault_counts_as_survived_when_its_block_ends_and_else_says_what_was_lost(tmp_path: Path) -> None:
    tally = Tally()
    with tally.tried("a kill", times=4):
        pass
    with pytest.raises(AssertionError), tally.tried("a kill"):
        raise AssertionError("two | runs\nof one batch")
    with tally.tried("a full disk"):
        pass
    said = tally.write(tmp_path)
    assert "| a kill | 5 | 4 | AssertionError: two / runs of one batch |\n| a full disk | 1 | 1 | nothing |" in said
    assert said.endswith("| **all** | **6** | **5** | |\n")
    assert (tmp_path / TABLE).read_text() == said


def test_rows_of_an_earlier_session_stay_until_they_are_tried_again(tmp_path: Path) -> None:
    for names in (["a kill", "a full disk"], ["a kill"]):
        tally = Tally()
        for name in names:
            with tally.tried(name):
                pass
        tally.write(tmp_path)
    rows = json.loads((tmp_path / FIGURES).read_text())["faults"]
    assert [(row["name"], row["tried"]) for row in rows] == [("a kill", 1), ("a full disk", 1)]
