"""Images a second of the whole detector, over those of its PixelCNN's `log_prob` alone, measured in one run.

python benchmarks/detector/scoring_speed.py [IMAGES]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from densitywatch.data.dataset import open_split
from densitywatch.detector import detector

ROUNDS = 5
BATCHES = (25, 50, 100, 250)


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main(count: int) -> None:
    loaded = detector.load(Path("models/detector"))
    images = np.array(open_split(Path("data/prepared"), "test").images[:count])
    model = loaded.models["pixelcnn"]

    def log_prob(batch: int) -> None:
        with torch.inference_mode():
            for start in range(0, len(images), batch):
                model.log_prob(torch.from_numpy(images[start : start + batch]))

    # `log_prob` gets its best batch size; the two alternate, so that a busy machine slows both equally
    best = min(BATCHES, key=lambda batch: seconds(lambda: log_prob(batch)))
    loaded.score(images[:50])
    ratios, rates = [], []
    for _ in range(ROUNDS):
        alone, whole = seconds(lambda: log_prob(best)), seconds(lambda: loaded.score(images))
        ratios.append(alone / whole)
        rates.append((len(images) / alone, len(images) / whole))
    print(f"log_prob alone, batches of {best}: {statistics.median(r[0] for r in rates):.0f} images/s")
    print(f"the whole detector: {statistics.median(r[1] for r in rates):.0f} images/s")
    print(f"ratio: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
