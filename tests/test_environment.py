"""Threads: a stage keeps to its share of the cores unless the user says otherwise. Memory: it keeps what it freed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from densitywatch.params import DeviceParams


def test_a_stage_takes_its_slots_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert DeviceParams(slots=3).threads_of_a_stage == 2
    assert DeviceParams(slots=16).threads_of_a_stage == 1
    assert DeviceParams(slots=3, threads=5).threads_of_a_stage == 5


THREADS = """
import sys
from densitywatch import cli

def count(context: cli.typer.Context) -> None:
    cli._load(context, stage=True)
    import numpy, threadpoolctl, torch
    torch.ones(256, 256) @ torch.ones(256, 256)
    blas = [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    print(torch.get_num_threads(), max(blas))

cli.app.command()(count)
sys.argv = ["densitywatch", "count"]
cli.main()
"""


@pytest.mark.parametrize(("exported", "expected"), [({}, "1 1"), ({"OMP_NUM_THREADS": "2"}, "2 2")])
def test_a_stage_computes_with_the_threads_of_params_or_with_those_that_the_user_exported(
    exported: dict[str, str], expected: str, project_root: Path, tmp_path: Path
) -> None:
    text = (project_root / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("threads: null", "threads: 1"))
    variables = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", THREADS],
        cwd=tmp_path,
        env=variables | exported,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == expected, done.stderr


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
