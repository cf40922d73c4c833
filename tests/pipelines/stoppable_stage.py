"""A stage of the small project that tests stop: trains a small network, with a checkpoint, as `densitywatch train`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from densitywatch import cli, console


def train(name: str) -> None:
    import numpy as np
    import torch

    from densitywatch.data.dataset import Split
    from densitywatch.devices import start_fabric
    from densitywatch.models.storage import build_model, save_model
    from densitywatch.params import DeviceParams, ModelBlock, TrainingParams
    from densitywatch.training import loop

    steps = int(os.environ.get("STEPS", "250"))
    # no checkpoint but the one that a stop asks for
    training = TrainingParams(steps=steps, batch_size=2, learning_rate=1e-3, evaluate_every=50, checkpoint_every=steps)
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (8, 1, 4, 4), dtype=np.uint8), rng.integers(0, 3, 8))
    torch.manual_seed(1)
    block = ModelBlock(kind="autoencoder", settings={"channels": 4}, training=training)
    model = build_model(block, channels=1, size=4, classes=3)
    step = loop.likelihood_step

    def slow_step(*args: object) -> dict[str, torch.Tensor]:
        Path("steps.txt").touch()  # the test sees that training has begun
        time.sleep(0.03)
        return step(*args)  # type: ignore[arg-type]

    loop.likelihood_step = slow_step
    fabric = start_fabric(DeviceParams(accelerator="cpu", threads=1))
    state = Path("checkpoints") / name
    run = loop.Run(name=name, seed=5, folder=state, identity=name)
    best, progress = loop.train(fabric, model, split, split, training, run)
    Path("models").mkdir(exist_ok=True)
    folder = Path("models") / name
    folder.mkdir(exist_ok=True)
    save_model(best, folder, kind="autoencoder", class_names=("a", "b", "c"), about={"best_step": progress.best_step})


if __name__ == "__main__":
    cli.app.registered_commands.clear()
    cli.app.command()(train)
    sys.argv = [sys.argv[0], "train", *sys.argv[1:]]
    console.run(cli.app)
