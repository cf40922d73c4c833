"""A small project for the tests of registry and serving: images of 8 x 8 pixels, tiny real models, a detector."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import torch

from densitywatch.data.encoding import png
from densitywatch.models.storage import build_model, save_model
from densitywatch.params import ModelBlock, Params, load_params
from densitywatch.tracking import runs as tracking

SIZE = 8
PARAMS = Path(__file__).parents[2] / "params.yaml"


def tiny_params() -> Params:
    params = load_params(PARAMS)
    return params.model_copy(
        update={
            "data": params.data.model_copy(update={"size": SIZE}),
            # models of no training at all become champions here
            "gate": params.gate.model_copy(update={"images": 128, "floor": False}),
            "detector": params.detector.model_copy(update={"members": ("pixelcnn_nll",)}),
        }
    )


def images(count: int, seed: int) -> np.ndarray:
    """Slopes of grey with a little noise, (count, 1, 8, 8): something that a model can learn in a second."""
    rng = np.random.default_rng(seed)
    slope = np.add.outer(np.arange(SIZE), np.arange(SIZE)) * 12
    noisy = slope + rng.integers(0, 60, (count, 1, 1, 1)) + rng.integers(-5, 6, (count, 1, SIZE, SIZE))
    return noisy.clip(0, 255).astype(np.uint8)


def write_data(root: Path) -> None:
    folder = root / "data" / "prepared"
    folder.mkdir(parents=True)
    counts = {"train": 64, "validation": 64, "calibration": 99, "gate": 64, "test": 16}
    for seed, (split, count) in enumerate(counts.items()):
        np.save(folder / f"{split}.npy", images(count, seed))
        np.save(folder / f"{split}_labels.npy", np.full(count, -1, dtype=np.int64))
    facts = {"name": "slopes", "size": SIZE, "channels": 1, "class_names": [], "digest": "0" * 64, "counts": counts}
    (folder / "dataset.json").write_text(json.dumps(facts))


def write_model(root: Path, name: str, *, kind: str = "pixelcnn", steps: int = 0, spoil: float | None = None) -> Path:
    """A model trained for `steps` steps; `spoil` is written over its first weights."""
    settings = {"pixelcnn": {"channels": 8, "dilations": [1]}, "vae": {"channels": 4, "latent": 2}}.get(kind, {})
    block = ModelBlock.model_validate(
        {"kind": kind, "settings": settings, "training": {"steps": 1, "batch_size": 1, "learning_rate": 1}}
    )
    torch.manual_seed(1)
    model = build_model(block, channels=1, size=SIZE, classes=0)
    if steps:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        x = torch.from_numpy(images(64, 0))
        for _ in range(steps):
            optimizer.zero_grad()
            model.loss(x, None)[0].backward()
            optimizer.step()
    if spoil is not None:
        with torch.no_grad():
            next(model.parameters()).fill_(spoil)
    folder = root / "models" / name
    save_model(model, folder, kind=kind, class_names=(), about={"data_digest": "0" * 64})
    return folder


def aliases(params: Params, root: Path, name: str) -> dict[str, str]:
    """The aliases of a registered model and the numbers of their versions."""
    client = tracking.open_client(tracking.tracking_uri(params, root))
    found = client.get_registered_model(f"densitywatch-{name}").aliases
    return {alias: str(version) for alias, version in found.items()}


def base64_png(pixels: np.ndarray) -> str:
    """A grey image (H, W) as a PNG file in base64."""
    return base64.b64encode(png(pixels[None])).decode()
