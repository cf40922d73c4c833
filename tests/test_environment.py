"""Threads: a stage keeps to its share of the cores unless the user says otherwise. Memory: it keeps what it freed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from densitywatch.params import DeviceParams, load_params


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


@pytest.mark.slow
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


AT_TORCH = """
import os, sys
from pathlib import Path

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("torch is loaded with", os.environ.get("OMP_NUM_THREADS"))
            os._exit(0)

sys.meta_path.insert(0, Watch())
if sys.argv[1] == "flow":
    from pipelines import retrain
    retrain.ensure_device_limit = lambda slots: None  # would start a server, which outlives this program
    retrain.note_uncommitted = lambda root: None  # writes to a run's page, and this is none
    sys.stdout.reconfigure(line_buffering=True)
    retrain._retrain(Path())
else:
    from densitywatch.cli import main
    sys.stdout.reconfigure(line_buffering=True)
    main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train vae", "evaluate vae", "calibrate", "benchmark", "flow retrain"])
def test_the_share_is_set_before_torch_reads_it(command: str, project_root: Path) -> None:
    """torch counts its threads once; stages that all take every core are several times slower beside each other."""
    env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    run = subprocess.run(
        [sys.executable, "-c", AT_TORCH, *command.split()],
        cwd=project_root,
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    share = load_params(project_root / "params.yaml").device.threads_of_a_stage
    assert run.stdout.splitlines()[-1:] == [f"torch is loaded with {share}"], run.stderr[-2000:]


def test_what_has_loaded_blas_already_keeps_to_the_share_as_well() -> None:
    script = (
        "import os, numpy, threadpoolctl; from densitywatch import environment;"
        "environment.limit_threads(os.environ, 1);"
        "print({pool['num_threads'] for pool in threadpoolctl.threadpool_info()})"
    )
    env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=True)
    assert run.stdout == "{1}\n"


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
