"""Thousands of made inputs at every door: none makes the program crash, hang or write outside of its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.hostile.count import Count, count
from tests.faults.hostile.doors import all_doors, find_door

SEED = 1


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", all_doors())
def test_no_input_crashes_escapes_or_hangs(name: str, tmp_path: Path, counts: list[Count]) -> None:
    door = find_door(name)
    counted = count(door, tmp_path, cases=door.share, seed=SEED)
    counts.append(counted)
    assert (counted.crashed, counted.escaped, counted.hung) == (0, 0, 0), "\n\n".join(counted.found[:5])
    assert counted.tried >= door.share // 2, "too few different inputs were made"
    assert counted.taken + counted.refused == counted.tried
    assert counted.peak < 2 << 30
