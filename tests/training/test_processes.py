"""Every kind of model trained by two processes, and what a training on one process leaves twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from densitywatch.devices import start_fabric
from densitywatch.errors import ParamsError
from densitywatch.files import file_digest
from densitywatch.params import DeviceParams
from densitywatch.training.sharing import check_share
from tests.marks import marks
from tests.training.every_kind import KINDS, NAMES, make_project

RUNNER = Path(__file__).with_name("every_kind.py")
TOP = Path(__file__).parents[2]
WITHOUT_NOISE = ("pixelcnn", "pixelrnn")
"""Kinds that draw no numbers in training and normalise nothing by batch: two halves give what the whole gives."""


def start_training(root: Path) -> subprocess.Popen[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "LOCAL_RANK"))}
    environment = {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TOP / 'src'}{os.pathsep}{TOP}"}
    with (root / "said.txt").open("w") as said:
        return subprocess.Popen([sys.executable, RUNNER, root], env=environment, stdout=said, stderr=said, text=True)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
@marks("slow")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same project trained by one process, by one process again at the same time, and by two."""
    roots = {}
    for together in ({"one": 1, "again": 1}, {"two": 2}):
        for name, devices in together.items():
            roots[name] = tmp_path_factory.mktemp(name)
            make_project(roots[name], devices=devices)
        trainings = {name: start_training(roots[name]) for name in together}
        try:
            for name, training in trainings.items():
                assert training.wait(500) == 0, (roots[name] / "said.txt").read_text()[-4000:]
        finally:
            for training in trainings.values():
                training.kill()
    return roots


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_end_with_the_same_weights_and_statistics(trained: dict[str, Path], name: str) -> None:
    first, second = (read(trained["two"] / f"rank{rank}.json")["digests"] for rank in (0, 1))
    assert first[name] == second[name]
    assert (trained["two"] / "models" / name / "model.safetensors").is_file()


def test_the_first_process_alone_writes_and_each_model_has_one_run(trained: dict[str, Path]) -> None:
    from mlflow import MlflowClient

    assert read(trained["two"] / "rank1.json")["written"] == []
    assert read(trained["two"] / "rank0.json")["written"], "the watch sees what is written"
    assert not list((trained["two"] / "checkpoints").iterdir())
    client = MlflowClient(f"sqlite:///{trained['two'] / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("densitywatch").experiment_id])
    assert sorted(run.data.tags["model"] for run in runs) == sorted(KINDS)


@pytest.mark.parametrize("name", WITHOUT_NOISE)
def test_two_processes_see_the_same_batches_and_the_same_validation_images_as_one(
    trained: dict[str, Path], name: str
) -> None:
    one, two = (read(trained[root] / "models" / name / "history.json")["rows"] for root in ("one", "two"))
    for alone, shared in zip(one, two, strict=True):
        assert shared == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_two_trainings_give_equal_hashes_of_every_file_that_dvc_keeps(trained: dict[str, Path], name: str) -> None:
    def outputs(root: Path) -> dict[str, str]:
        files = {file.name: file_digest(file) for file in (root / "models" / name).iterdir()}
        metrics = root / "metrics" / f"{name}.json"
        return files | ({"metrics": file_digest(metrics)} if metrics.exists() else {})

    first = outputs(trained["one"])
    assert first == outputs(trained["again"])
    assert first.keys() >= {"model.safetensors", "history.json"}


@pytest.mark.parametrize("devices", [2, 3])
def test_a_batch_that_devices_cannot_share_evenly_is_refused_by_name(devices: int) -> None:
    fabric = SimpleNamespace(world_size=devices)
    check_share("models.vae", 6 * devices, fabric)
    for size in (1, 6 * devices + 1):
        with pytest.raises(ParamsError, match=rf"models\.vae\.training\.batch_size: {size} images.*{devices} devices"):
            check_share("models.vae", size, fabric)


def test_what_is_averaged_keeps_its_shape_and_its_order_in_memory() -> None:
    from densitywatch.training.sharing import average

    kernel = torch.arange(24.0).reshape(2, 3, 2, 2).to(memory_format=torch.channels_last)
    bias = torch.tensor(5.0)
    before = kernel.clone()

    def halved(values: torch.Tensor, reduce_op: str) -> torch.Tensor:
        assert reduce_op == "mean"
        return values / 2  # as if the other process's were all zero

    average(SimpleNamespace(world_size=2, all_reduce=halved), [kernel, bias])
    assert torch.equal(kernel, before / 2)
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert float(bias) == 2.5


def test_processes_on_a_cpu_share_its_threads_and_devices_that_are_not_there_are_refused_by_name() -> None:
    alone = DeviceParams(accelerator="cpu", slots=1)
    shared = alone.model_copy(update={"devices": 2})
    assert shared.threads_of_a_process == max(1, alone.threads_of_a_process // 2)
    assert DeviceParams(accelerator="cuda", devices=2, slots=1).threads_of_a_process == alone.threads_of_a_process
    with pytest.raises(ParamsError, match="device: accelerator 'cuda' with devices 64 cannot be used here"):
        start_fabric(DeviceParams(accelerator="cuda", devices=64))
