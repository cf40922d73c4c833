"""Threads: a stage keeps to its share of the cores unless the user says otherwise. Memory: it keeps what it freed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

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


PAGES_TAKEN = """
import resource, numpy, sys
from densitywatch import environment
if sys.argv[1] == "keep":
    environment.keep_freed_memory()
taken = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
numpy.zeros(12_000_000).fill(1.0)
before = taken()
for _ in range(5):
    numpy.empty(12_000_000).fill(1.0)
print(taken() - before)
"""


def test_a_stage_takes_the_memory_of_large_tensors_from_the_system_once() -> None:
    """Under glibc, whose setting it is; under another C library the call does nothing and does no harm."""

    def pages(argument: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", PAGES_TAKEN, argument], capture_output=True, text=True, check=True, env=os.environ
        )
        return int(done.stdout)

    kept, given_back = pages("keep"), pages("give back")
    most = 0.05 if platform.libc_ver()[0] == "glibc" else 1.5
    assert kept < most * given_back, f"{kept} pages against {given_back}"
