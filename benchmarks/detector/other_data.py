"""The detector on other data, by one command: the reverse direction, and one photograph against another.

    python benchmarks/detector/other_data.py reverse     MNIST is normal, Fashion-MNIST's test images are foreign
    python benchmarks/detector/other_data.py photos      RGB patches of one photograph; those of the other are foreign
    python benchmarks/detector/other_data.py             both

Fetches and prepares the data, trains a small PixelCNN (`--steps` batches of 32), calibrates with the members of
params.yaml in a scratch folder, and prints every member's figures. `reverse` reads data/prepared of the project for
the foreign images; nothing else of the project is read or written.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from densitywatch.data.dataset import open_split
from densitywatch.data.fetch import fetch
from densitywatch.data.prepare import prepare
from densitywatch.detector import detector
from densitywatch.detector.calibrate import calibrate
from densitywatch.detector.scores.small_density import fit_small_density, load_small_density
from densitywatch.models.storage import save_model
from densitywatch.outlier_benchmark.auroc import MEASURES, separation
from densitywatch.params import Params, load_params

IMAGES = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", nargs="?", choices=["reverse", "photos"])
    parser.add_argument("--steps", type=int, default=300)
    asked = parser.parse_args()
    for pair in [asked.pair] if asked.pair else ["reverse", "photos"]:
        print(pair)
        measure(with_data(load_params(), pair), pair, asked.steps)


def measure(params: Params, pair: str, steps: int) -> None:
    """Print the figures of the detector, of its members and of the likelihood for one pair."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        fetch(params, root)
        prepare(params, root)
        foreign = keep_first_photograph(root) if pair == "photos" else open_split(Path("data/prepared"), "test").images
        train(params, root, steps)
        calibrate(params, root)
        loaded = detector.load(root / "models" / "detector")
        normal = loaded.score(np.array(open_split(root / "data/prepared", "test").images[:IMAGES]))
        other = loaded.score(np.array(foreign[:IMAGES]))
        print(f"{'score':24}" + "".join(f"{measure:>16}" for measure in MEASURES))
        rows = {"detector": (normal.score, other.score)}
        rows |= {name: (normal.members[name], other.members[name]) for name in normal.members}
        rows["raw likelihood"] = (normal.bits_per_dim, other.bits_per_dim)
        for name, (inside, outside) in rows.items():
            print(f"{name:24}" + "".join(f"{value[0]:16.3f}" for value in separation(inside, outside).values()))


def with_data(params: Params, pair: str) -> Params:
    """The same params on the other data; nothing else changes."""
    if pair == "reverse":
        data = {"source": "mnist", "address": None, "size": 28, "channels": 1}
    else:
        data = {"source": "photos", "address": None, "size": 32, "channels": 3}
    return params.model_copy(update={"data": params.data.model_copy(update=data)})


def keep_first_photograph(root: Path) -> NDArray[np.uint8]:
    """Keep only the first photograph's patches in data/prepared; return the other's test patches."""
    folder = root / "data" / "prepared"
    foreign = np.zeros(0, dtype=np.uint8)
    for split in ("train", "validation", "calibration", "gate", "test"):
        images, labels = np.load(folder / f"{split}.npy"), np.load(folder / f"{split}_labels.npy")
        foreign = images[labels == 1]  # the last split is the test one
        np.save(folder / f"{split}.npy", images[labels == 0])
        np.save(folder / f"{split}_labels.npy", labels[labels == 0])
    return foreign


def train(params: Params, root: Path, steps: int) -> None:
    """Train a small PixelCNN on the training images and save it where the detector looks for it."""
    images = open_split(root / "data" / "prepared", "train").images
    weights = fit_small_density(images, channels=24, dilations=(1, 2, 1), steps=steps, mutation=0.0, seed=params.seed)
    names = tuple(json.loads((root / "data/prepared/dataset.json").read_text())["class_names"])
    save_model(load_small_density(weights), root / "models" / "pixelcnn", kind="pixelcnn", class_names=names, about={})


if __name__ == "__main__":
    main()
