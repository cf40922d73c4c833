"""A training that is struck, and one whose resume point was cut off: it ends as if nothing had happened."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from densitywatch.files import file_digest
from densitywatch.training.checkpoint import STATE
from tests.faults import struck
from tests.faults.tally import Tally
from tests.training.every_kind import make_project

pytestmark = pytest.mark.timeout(1800)

TRAIN = struck.verb("train", "vae")
OUTPUTS = ("model.safetensors", "history.json", "training.json")


def project(root: Path) -> Path:
    """A project whose VAE trains for some seconds, with a checkpoint every few steps."""
    root.mkdir()
    make_project(root)
    measured_every(root, 40, 25)
    return root


def measured_every(root: Path, steps: int, checkpoint: int) -> None:
    raw = yaml.safe_load((root / "params.yaml").read_text())
    raw["models"]["vae"]["training"] |= {"steps": 300, "evaluate_every": steps, "checkpoint_every": checkpoint}
    (root / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))


def outputs(root: Path) -> dict[str, str]:
    return {name: file_digest(root / "models" / "vae" / name) for name in OUTPUTS}


def runs(root: Path) -> list[tuple[str, dict[str, list[tuple[int, float]]]]]:
    """The state of every run in MLflow's store, and its curves."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("densitywatch").experiment_id])

    def curve(run: Any, key: str) -> list[tuple[int, float]]:
        return sorted({(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)})

    return [(run.info.status, {key: curve(run, key) for key in run.data.metrics}) for run in found]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A training that nobody struck, and the seconds from its first step to its end."""
    root = project(tmp_path_factory.mktemp("training") / "undisturbed")
    process = struck.start(TRAIN, root, struck.of_project(root))
    while not (root / "checkpoints" / "vae" / STATE).exists() and process.poll() is None:
        time.sleep(0.02)
    began = time.monotonic()
    assert process.wait(300) == 0, (root / "said.txt").read_text()[-3000:]
    return root, time.monotonic() - began


@pytest.mark.parametrize("number", struck.SIGNALS, ids=lambda number: number.name)
def test_a_training_that_is_struck_four_times_ends_with_the_weights_and_curves_of_one_that_was_not(
    number: Any, undisturbed: tuple[Path, float], tmp_path: Path, tally: Tally
) -> None:
    reference, seconds = undisturbed
    root = project(tmp_path / "struck")
    environment = struck.of_project(root)
    with tally.tried(f"{number.name} of a training process", times=4):
        blows = [
            struck.strike(TRAIN, root, environment, number, after, seen=root / "checkpoints" / "vae" / STATE)
            for after in struck.moments(number, 4, seconds / 8)  # all four before the last step
        ]
        assert not any(blow.ended for blow in blows)
        struck.finish(TRAIN, root, environment)
        assert outputs(root) == outputs(reference)
        assert runs(root) == runs(reference)


def test_a_training_killed_before_its_first_resume_point_leaves_no_run_that_seems_to_go_on(
    undisturbed: tuple[Path, float], tmp_path: Path, tally: Tally
) -> None:
    reference, _ = undisturbed
    root = project(tmp_path / "struck")
    environment = struck.of_project(root)
    measured_every(root, 300, 300)  # no resume point before the end, on the fastest machine too
    with tally.tried("SIGKILL of a training before its first resume point"):
        struck.strike(TRAIN, root, environment, struck.SIGNALS[0], 2.0, seen=root / "mlflow.db")
        assert not (root / "checkpoints").exists()
        assert [status for status, _ in runs(root)] == ["RUNNING"]
        measured_every(root, 40, 25)
        struck.finish(TRAIN, root, environment)
        assert outputs(root) == outputs(reference)
        assert sorted(status for status, _ in runs(root) if status != "KILLED") == ["FINISHED"]


def test_a_resume_point_that_is_cut_off_is_not_gone_on_from(
    undisturbed: tuple[Path, float], tmp_path: Path, tally: Tally
) -> None:
    reference, _ = undisturbed
    root = project(tmp_path / "damaged")
    environment, state = struck.of_project(root), root / "checkpoints" / "vae" / STATE
    struck.strike(TRAIN, root, environment, struck.SIGNALS[0], 0.3, seen=state)
    whole = state.read_bytes()
    lengths = (0, 7, 8, len(whole) // 3, len(whole) - 1)
    for length in lengths:
        with tally.tried("a truncated resume point (checkpoint)"):
            state.parent.mkdir(parents=True, exist_ok=True)
            state.write_bytes(whole[:length])
            struck.finish(TRAIN, root, environment)
            assert outputs(root) == outputs(reference)
            assert json.loads((root / "models" / "vae" / "history.json").read_text())["rows"]
