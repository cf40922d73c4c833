"""What it gives a stage to keep the memory that it freed (environment.keep_freed_memory): scoring and training steps.

    python benchmarks/speed/freed_memory.py

One thread, the processor's time, default settings, eager. Each line is measured in two processes, one as glibc is and
one as stages are, three times in turn; the table has the medians of ms an image and their ratio.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path

import torch
from likelihood_models import images, seconds
from sizes import training_step

from densitywatch import environment
from densitywatch.devices import start_fabric
from densitywatch.params import DeviceParams, load_params

SCORED = {"pixelcnn": "log_prob", "pixelrnn": "log_prob", "conditional_pixelcnn": "log_prob_by_label", "vae": "elbo"}
BATCH = 250
ROUNDS = 3


def measure() -> dict[str, float]:
    """What is measured -> ms an image, in this process."""
    params = load_params(Path(__file__).parents[2] / "params.yaml")
    result = {}
    for name, block in params.models.items():
        fabric = start_fabric(DeviceParams(accelerator="cpu", threads=1), block.training.precision)
        batch = block.training.batch_size
        model, step = training_step(name, params, fabric, batch=batch, size=28, channels=1)
        result[f"{name}, a training step of {batch}"] = 1e3 * seconds(step) / batch
        if name in SCORED:
            x, score = images(BATCH), getattr(model.eval(), SCORED[name])
            with torch.no_grad():
                result[f"{name}, {SCORED[name]} of {BATCH}"] = 1e3 * seconds(partial(score, x)) / BATCH
    return result


def main() -> None:
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: {"as it is": [], "kept": []})
    for way in ["as it is", "kept"] * ROUNDS:
        done = subprocess.run(  # noqa: S603
            [sys.executable, __file__, way], stdout=subprocess.PIPE, text=True, check=True
        )
        for what, ms in json.loads(done.stdout).items():
            found[what][way].append(ms)
    print("| what | ms an image as glibc is | freed memory kept | ratio |\n|---|---|---|---|")
    for what, ways in found.items():
        before, after = (statistics.median(values) for values in ways.values())
        print(f"| {what} | {before:.2f} | {after:.2f} | {before / after:.2f}x |")


if __name__ == "__main__":
    if sys.argv[1:]:
        if sys.argv[1] == "kept":
            environment.keep_freed_memory()
        print(json.dumps(measure()))
    else:
        main()
