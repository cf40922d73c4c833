"""Every stage of the tiny profile on colour images of 256 x 256 pixels, in this process; prints its peak memory.

python -m tests.data.decoding.large_images PROJECT
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from densitywatch import environment

SIZE = 256
IMAGES = 60
"""Of each of the two photographs."""
LARGE = {
    "data": {"source": "folder", "address": "photographs", "size": SIZE, "channels": 3, "gate": 0.1},
    # short: memory is what is looked at
    "evaluate": {"code_images": 1, "quality": {"images": 16, "slow_images": 8, "neighbour_images": 16}},
}


def write_photographs(folder: Path) -> None:
    """Crops of scikit-learn's two photographs, a folder each, of random places, scales and sides."""
    rng = np.random.default_rng(0)
    for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
        (folder / name).mkdir(parents=True)
        for number in range(IMAGES):
            side = int(rng.integers(200, 400))
            top, left = (int(rng.integers(0, length - side)) for length in pixels.shape[:2])
            crop = Image.fromarray(pixels[top : top + side, left : left + side]).resize((SIZE, SIZE))
            crop.save(folder / name / f"{number:02d}.jpg", quality=95)


def write_digits(panel: Path) -> None:
    """Foreign images: handwritten digits in place of MNIST's, which would have to be fetched."""
    panel.mkdir(parents=True)
    digits = (load_digits().images * 15.9).astype(np.uint8)[:200, None]
    np.save(panel / "mnist.npy", np.pad(digits.repeat(3, 2).repeat(3, 3), ((0, 0), (0, 0), (2, 2), (2, 2))))


def main(root: Path) -> None:
    from densitywatch.batches.score_batch import score_source
    from densitywatch.data.demo_batch import make_demo_batch
    from densitywatch.data.fetch import fetch
    from densitywatch.data.prepare import prepare
    from densitywatch.data.validation.validate import validate
    from densitywatch.detector.calibrate import calibrate
    from densitywatch.evaluation.evaluate import evaluate_model
    from densitywatch.evaluation.measures.feature_network import train_classifier
    from densitywatch.evaluation.report.report import write_report
    from densitywatch.outlier_benchmark.benchmark import benchmark
    from densitywatch.params import load_params
    from densitywatch.profiles import apply_profile
    from densitywatch.registry.gate import gate
    from densitywatch.training.train import train_model

    write_photographs(root / "photographs")
    write_digits(root / "data" / "panel")
    top = Path(__file__).resolve().parents[3]
    shutil.copytree(top / "profiles", root / "profiles")
    shutil.copy(top / "params.yaml", root / "params.yaml")
    (root / "profiles" / "large.yaml").write_text(json.dumps(LARGE), encoding="utf-8")
    for profile in ("tiny", "large"):
        apply_profile(profile, root)
    params = load_params(root / "params.yaml")
    fetch(params, root)
    prepare(params, root)
    validate(params, root)
    train_classifier(params, root)
    for name in params.models:
        train_model(name, params, root)
        evaluate_model(name, params, root)
        verdict = gate(name, root / "models" / name, None, params, root)
        assert verdict.passed, verdict
    calibrate(params, root)
    benchmark(params, root)
    make_demo_batch(params, root)
    write_report(params, root)
    summary = score_source("data/inbox/demo", params, root)
    peaks = {
        who: resource.getrusage(code).ru_maxrss * 1024
        for who, code in (("self", resource.RUSAGE_SELF), ("children", resource.RUSAGE_CHILDREN))
    }
    (root / "peaks.json").write_text(json.dumps({**peaks, "scored": summary["scored"]}), encoding="utf-8")


if __name__ == "__main__":
    environment.settle(os.environ)
    main(Path(sys.argv[1]))
