"""A project small enough to calibrate in a second: images of bars, a PixelCNN of a few weights."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from densitywatch.detector.scores.small_density import fit_small_density, load_small_density
from densitywatch.models.storage import save_model
from densitywatch.models.vae import VAE
from densitywatch.models.vae import Settings as VAESettings
from densitywatch.params import Params, load_params

SIZE = 14
COUNTS = {"train": 400, "validation": 120, "calibration": 150, "gate": 60, "test": 120}


def bars(count: int, seed: int, channels: int = 1) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images with a bright bar: label 0 in the upper left, label 1 along the bottom; weak noise elsewhere."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 12, (count, channels, SIZE, SIZE))
    labels = rng.integers(0, 2, count)
    for image, label in zip(images, labels, strict=True):
        length, shade = rng.integers(6, 10), rng.integers(120, 220)
        if label == 0:
            image[:, 2 : 2 + length, 2:5] += shade
        else:
            image[:, -4:-2, 2 : 2 + length] += shade
    return images.astype(np.uint8), labels.astype(np.int64)


def make_project(root: Path, params_file: Path, *, channels: int = 1, **detector: object) -> Params:
    """data/prepared, data/panel, models/pixelcnn and models/vae under `root`; returns params for them."""
    data = root / "data" / "prepared"
    data.mkdir(parents=True)
    for seed, (split, count) in enumerate(COUNTS.items()):
        images, labels = bars(count, seed, channels)
        np.save(data / f"{split}.npy", images)
        np.save(data / f"{split}_labels.npy", labels)
    facts = {
        "name": "bars",
        "size": SIZE,
        "channels": channels,
        "class_names": ["upper", "lower"],
        "digest": "0" * 64,
        "counts": COUNTS,
    }
    (data / "dataset.json").write_text(json.dumps(facts))
    panel = root / "data" / "panel"
    panel.mkdir()
    np.save(panel / "mnist.npy", np.random.default_rng(9).integers(0, 256, (40, 1, 28, 28), dtype=np.uint8))

    small = load_small_density(_weights(channels))
    about = {"class_names": ("upper", "lower"), "about": {}}
    save_model(small, root / "models" / "pixelcnn", kind="pixelcnn", **about)
    torch.manual_seed(0)
    vae = VAE(VAESettings(channels=4, latent=3, components=2), channels=channels, size=SIZE, classes=2)
    save_model(vae, root / "models" / "vae", kind="vae", **about)
    return with_detector(load_params(params_file), channels=channels, **detector)


@cache
def _weights(channels: int) -> dict[str, NDArray[Any]]:
    """Of the PixelCNN, trained once for all projects: the images are the same in each."""
    train, _ = bars(COUNTS["train"], 0, channels)
    return fit_small_density(train, channels=6, dilations=(1,), steps=60, mutation=0.0, seed=0)


def with_detector(params: Params, *, channels: int = 1, **detector: object) -> Params:
    """The same params for images of bars, with other values in the detector's block."""
    small = {
        "small_network_steps": 3,
        "declared_steps": 3,
        "panel_images": 40,
        "slow_images": 6,
        "folds": 2,
        **detector,
    }
    return params.model_copy(
        update={
            "data": params.data.model_copy(update={"size": SIZE, "channels": channels}),
            "detector": params.detector.model_copy(update=small),
        }
    )
