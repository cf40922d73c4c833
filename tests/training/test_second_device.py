"""Every stage that computes, with its models and images on another device than the CPU (standin_device.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from densitywatch.params import load_params
from densitywatch.training.train import train_model
from tests.marks import marks
from tests.training.every_kind import KINDS, NAMES, make_project

TOP = Path(__file__).parents[2]
STAGES = [*[f"{verb} {name}" for name in NAMES for verb in ("train", "evaluate")][:-1], "calibrate", "benchmark"]


pytestmark = pytest.mark.timeout(1500)  # every stage in one process, on one thread


@pytest.fixture(scope="module")
@marks("slow")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The project, and the stages that failed; in a process of its own, since the device is there to its end."""
    root = tmp_path_factory.mktemp("standin")
    make_project(root, accelerator="auto")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    environment = {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TOP / 'src'}{os.pathsep}{TOP}"}
    command = [sys.executable, "-m", "tests.training.on_standin", str(root)]
    done = subprocess.run(command, cwd=TOP, env=environment, capture_output=True, text=True, timeout=1400, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return root, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_runs_on_a_second_device(ran: tuple[Path, dict[str, str]], stage: str) -> None:
    assert stage not in ran[1]
    verb, _, name = stage.partition(" ")
    left = {"train": f"models/{name}/model.safetensors", "evaluate": f"metrics/{name}.json"}
    left |= {"calibrate": "models/detector/detector.json", "benchmark": "metrics/outliers.json"}
    assert (ran[0] / left[verb]).is_file()


@pytest.mark.parametrize("name", ["pixelcnn", "gan"])
def test_a_training_there_is_that_of_the_cpu(ran: tuple[Path, dict[str, str]], name: str, tmp_path: Path) -> None:
    """The stand-in computes with the CPU, so a value left behind on the way would show."""
    assert name in KINDS
    make_project(tmp_path)
    train_model(name, load_params(tmp_path / "params.yaml"), tmp_path)
    file = Path("models") / name / "model.safetensors"
    assert (ran[0] / file).read_bytes() == (tmp_path / file).read_bytes()
