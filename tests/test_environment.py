"""Threads: a stage keeps to its share of the cores unless the user says otherwise."""

from __future__ import annotations

import os

import pytest

from densitywatch import environment
from densitywatch.params import DeviceParams


def test_a_stage_takes_its_slots_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert DeviceParams(slots=3).threads_of_a_stage == 2
    assert DeviceParams(slots=16).threads_of_a_stage == 1
    assert DeviceParams(slots=3, threads=5).threads_of_a_stage == 5


def test_what_the_user_exported_stays() -> None:
    variables = {"OMP_NUM_THREADS": "7"}
    environment.limit_threads(variables, 1)
    assert variables == {"OMP_NUM_THREADS": "7"}
    fresh: dict[str, str] = {}
    environment.limit_threads(fresh, 2)
    assert fresh == {"OMP_NUM_THREADS": "2"}
