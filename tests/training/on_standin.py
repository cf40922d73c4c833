"""Every stage that computes, on the stand-in device: on_standin.py FOLDER; what failed is on the last line as JSON."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import lightning_fabric
import torch
from lightning_fabric.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from densitywatch import devices
from densitywatch.detector.calibrate import calibrate
from densitywatch.evaluation.evaluate import evaluate_model
from densitywatch.evaluation.measures.feature_network import train_classifier
from densitywatch.outlier_benchmark.benchmark import benchmark
from densitywatch.params import load_params
from densitywatch.training.train import train_model
from tests.training.every_kind import KINDS
from tests.training.standin_device import DEVICE, StandIn

MISTAKES: dict[str, Callable[[Tensor], object]] = {
    "a tensor of the CPU among those of the device": lambda x: x + torch.ones(3),
    "weights of the CPU and images of the device": lambda x: nn.Linear(3, 2)(x),
    "numbers there from a generator of the CPU": lambda x: torch.randn(
        3, device=x.device, generator=torch.Generator().manual_seed(0)
    ),
    "an array of a tensor of the device": lambda x: x.numpy(),
    "a tensor of the CPU to write to": lambda x: torch.mul(x, 2.0, out=torch.empty(2, 3)),
}


def unseen() -> list[str]:
    """The mistakes that pass on this device as they would not on a GPU."""
    x, passed = torch.ones(2, 3).to(DEVICE), []
    for name, mistake in MISTAKES.items():
        with suppress(RuntimeError, TypeError):
            mistake(x)
            passed.append(name)
    return passed


def main(root: Path) -> dict[str, str]:
    """Stage -> its error, for those that failed."""
    assert unseen() == []
    assert float((torch.ones(2, 3).to(DEVICE) * torch.tensor(2.0)).sum()) == 12.0
    # such tensors, made in Python, cannot be without a version counter; without gradients is all that matters here
    torch.inference_mode = lambda mode=True: torch.no_grad() if mode else nullcontext()  # type: ignore[assignment,misc]
    fabric, computed = lightning_fabric.Fabric, set[torch.device]()

    def on_the_device(**settings: Any) -> Any:
        strategy = SingleDeviceStrategy(device=DEVICE, accelerator=StandIn())
        made = fabric(strategy=strategy, devices=1, precision=settings["precision"])
        computed.add(made.device)
        return made

    lightning_fabric.Fabric = on_the_device  # type: ignore[assignment,misc]
    devices.choose_device = lambda device: DEVICE
    params = load_params(root / "params.yaml")
    stages: dict[str, Any] = {"train classifier": lambda: train_classifier(params, root)}
    for name in KINDS:
        stages[f"train {name}"] = lambda name=name: train_model(name, params, root)
        stages[f"evaluate {name}"] = lambda name=name: evaluate_model(name, params, root)
    stages |= {"calibrate": lambda: calibrate(params, root), "benchmark": lambda: benchmark(params, root)}
    failed = {}
    for stage, run in stages.items():
        try:
            run()
        except Exception as error:
            traceback.print_exc()
            failed[stage] = f"{type(error).__name__}: {error}"
    assert computed == {DEVICE}, computed
    return failed


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
