"""A small training run in a process of its own, so that a test can kill it: runner.py FOLDER [KILL_AFTER_STEP]."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from densitywatch.data.dataset import Split
from densitywatch.devices import start_fabric
from densitywatch.models.storage import build_model, save_model
from densitywatch.params import DeviceParams, ModelBlock, TrainingParams
from densitywatch.training import loop

TRAINING = TrainingParams(
    steps=12,
    batch_size=4,
    learning_rate=1e-3,
    optimizer="muon",
    warmup_steps=2,
    evaluate_every=4,
    checkpoint_every=3,
    validation_images=8,
)


def run(kind: str, folder: Path, kill_after: int | None = None) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    split = Split(images, rng.integers(0, 3, 40))
    fabric = start_fabric(DeviceParams(accelerator="cpu", threads=1))
    torch.manual_seed(1)
    settings = {"channels": 4, "dilations": [1, 2]} if kind == "pixelcnn" else {"channels": 4, "latent": 3}
    block = ModelBlock(kind=kind, settings=settings, training=TRAINING)
    model = build_model(block, channels=1, size=8, classes=3).to(memory_format=torch.channels_last)

    if kill_after is not None:
        step = loop.likelihood_step
        steps_done = 0

        def step_then_die(*args: object) -> dict[str, torch.Tensor]:
            nonlocal steps_done
            logs = step(*args)  # type: ignore[arg-type]
            steps_done += 1
            if steps_done == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            return logs

        loop.likelihood_step = step_then_die
    run = loop.Run(name=kind, seed=5, folder=folder / "state", identity="one")
    best, progress = loop.train(fabric, model, split, split, TRAINING, run)
    save_model(best, folder, kind=kind, class_names=("a", "b", "c"), about={"best_step": progress.best_step})
    (folder / "history.txt").write_text(repr(progress.history))


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
