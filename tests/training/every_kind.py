"""A project with a model of every kind, and a script that trains all of them: every_kind.py FOLDER.

Each process leaves rank<k>.json in FOLDER: the digest of the weights that it ended with, by model, and what it wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from sklearn.datasets import load_digits

TOP = Path(__file__).parents[2]
SIZE = 8
COUNTS = {"train": 200, "validation": 41, "calibration": 40, "gate": 40, "test": 48}
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "pixelcnn": ("pixelcnn", {"channels": 4, "dilations": [1]}, {"optimizer": "muon"}),
    "conditional_pixelcnn": ("pixelcnn", {"channels": 4, "dilations": [1], "conditional": True}, {}),
    "pixelrnn": ("pixelrnn", {"channels": 3, "layers": 1, "head": "logistic_mixture"}, {"optimizer": "muon"}),
    "vae": ("vae", {"channels": 4, "latent": 4}, {"optimizer": "muon"}),
    "autoencoder": ("autoencoder", {"channels": 4, "code": 4, "noise": 0.3}, {}),
    "gan": ("gan", {"latent": 4, "generator": [16], "discriminator": [16]}, {}),
    "dcgan": ("dcgan", {"latent": 4, "generator_channels": 16, "discriminator_channels": 4}, {}),
    "conditional_gan": (
        "conditional_gan",
        {"latent": 4, "generator_channels": 16, "discriminator_channels": 4, "discriminator_features": 4},
        {},
    ),
}
NAMES = (*KINDS, "classifier")
TRAINING = {
    "steps": 6,
    "batch_size": 8,
    "learning_rate": 2e-3,
    "warmup_steps": 2,
    "evaluate_every": 3,
    "checkpoint_every": 2,
    "validation_images": None,
}


def make_project(root: Path, **device: Any) -> None:
    """params.yaml with a small model of every kind, and real digits of 8 x 8 pixels in data/prepared."""
    raw = yaml.safe_load((TOP / "params.yaml").read_text())
    raw["data"] |= {"size": SIZE}
    raw["models"] = {
        name: {"kind": kind, "settings": settings, "training": TRAINING | training}
        for name, (kind, settings, training) in KINDS.items()
    }
    raw["classifier"] = {"settings": {"channels": 4, "features": 8}, "training": TRAINING}
    raw["device"] |= {"accelerator": "cpu", "threads": 1, "compile": False} | device
    raw["evaluate"] = {
        "test_images": None,
        "batch_size": 20,
        "importance_samples": 3,
        "importance_images": 10,
        "sample_images": 20,
        "code_images": 2,
        "quality": {"images": 60, "slow_images": 20, "neighbour_images": 40, "label_training_steps": 3},
        "latent": {"draws": 6},
        "probe": {"labels": [50], "regularisation": [1e-2]},
    }
    raw["detector"] |= {
        "small_network_steps": 2,
        "declared_steps": 2,
        "panel_images": 20,
        "slow_images": 4,
        "folds": 1,
    }
    (root / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    images, labels = load_digits(return_X_y=True)
    prepared = root / "data" / "prepared"
    prepared.mkdir(parents=True)
    start = 0
    for split, count in COUNTS.items():
        part = slice(start, start + count)
        np.save(prepared / f"{split}.npy", (images[part].reshape(-1, 1, SIZE, SIZE) * 15.9).astype(np.uint8))
        np.save(prepared / f"{split}_labels.npy", labels[part].astype(np.int64))
        start += count
    facts = {"name": "digits", "size": SIZE, "channels": 1, "digest": "0" * 64, "counts": COUNTS}
    names = [f"digit {i}" for i in range(10)]
    (prepared / "dataset.json").write_text(json.dumps(facts | {"class_names": names}))
    (root / "data" / "panel").mkdir()
    digits = np.random.default_rng(0).integers(0, 256, (30, 1, 28, 28), dtype=np.uint8)
    np.save(root / "data" / "panel" / "mnist.npy", digits)


def digest_of(model: Any) -> str:
    """Of all weights and buffers."""
    content = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        content.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()


def main(root: Path) -> None:
    """Train every model under `root` with its params; started by the first process, the others do the same."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    written: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        path = str(arguments[0]) if arguments else ""
        writes = event in ("os.mkdir", "os.rename", "os.remove") or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if writes and path.startswith(str(root)):
            written.append(path)

    sys.addaudithook(watch)
    from densitywatch.evaluation.measures import feature_network
    from densitywatch.params import load_params
    from densitywatch.training import loop
    from densitywatch.training import train as stage

    digests: dict[str, str] = {}
    train = loop.train

    def noted(*arguments: Any) -> Any:
        best, progress = train(*arguments)
        digests[arguments[-1].name] = digest_of(best)
        return best, progress

    loop.train = stage.train = feature_network.train = noted  # type: ignore[assignment]
    params = load_params(root / "params.yaml")
    for name in NAMES:
        if name == "classifier":
            feature_network.train_classifier(params, root)
        else:
            stage.train_model(name, params, root)
    (root / f"rank{rank}.json").write_text(json.dumps({"digests": digests, "written": written}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
