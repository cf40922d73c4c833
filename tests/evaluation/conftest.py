"""A small project folder: real 8 x 8 digits, tiny models of every kind of figure, nothing trained for long."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sklearn.datasets import load_digits

from densitywatch.data.dataset import DatasetInfo, read_info
from densitywatch.evaluation.measures.context import Context
from densitywatch.evaluation.measures.feature_network import train_classifier
from densitywatch.models.storage import WEIGHTS, build_model, save_model
from densitywatch.params import ClassifierParams, ClassifierSettings, ModelBlock, Params, TrainingParams, load_params
from densitywatch.training.bookkeeping import note_training

TOP = Path(__file__).parents[2]
NAMES = ("Zero", "One", "<b>Two</b>", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
COUNTS = {"train": 200, "validation": 40, "calibration": 40, "test": 48, "gate": 40}
TRAINING = {"steps": 4, "batch_size": 8, "learning_rate": 1e-3}
MODELS: dict[str, Any] = {
    "vae": {"kind": "vae", "settings": {"channels": 4, "latent": 4}, "training": TRAINING},
    "pixelcnn": {"kind": "pixelcnn", "settings": {"channels": 4, "dilations": [1]}, "training": TRAINING},
    "by_label": {
        "kind": "pixelcnn",
        "settings": {"channels": 4, "dilations": [1], "conditional": True},
        "training": TRAINING,
    },
}


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    images, labels = load_digits(return_X_y=True)
    return (images.reshape(-1, 1, 8, 8) * 15.9).astype(np.uint8), labels.astype(np.int64)


@pytest.fixture
def project(tmp_path: Path, digits: tuple[np.ndarray, np.ndarray]) -> Path:
    """A project's top folder with params.yaml, data/prepared and three models that were never trained."""
    write_params(tmp_path, MODELS)
    images, labels = digits
    prepared = tmp_path / "data" / "prepared"
    prepared.mkdir(parents=True)
    start = 0
    for split, count in COUNTS.items():
        np.save(prepared / f"{split}.npy", images[start : start + count])
        np.save(prepared / f"{split}_labels.npy", labels[start : start + count])
        start += count
    write_info(tmp_path)
    for name in MODELS:
        add_model(tmp_path, name)
    return tmp_path


@pytest.fixture
def params(project: Path) -> Params:
    return load_params(project / "params.yaml")


@pytest.fixture
def context_of(project: Path, params: Params) -> Callable[..., Context]:
    """Makes the context of a stand-in model."""

    def make(model: Any, **changes: Any) -> Context:
        out = project / "pictures"
        out.mkdir(exist_ok=True)
        usual = {
            "name": "standin",
            "model": model,
            "data": project / "data" / "prepared",
            "info": read_info(project / "data" / "prepared"),
            "params": params,
            "out": out,
            "classifier": None,
            "device": torch.device("cpu"),
        }
        return Context(**(usual | changes))

    return make


@pytest.fixture
def with_classifier(params: Params, project: Path) -> tuple[Params, Path]:
    """Params and folder of a project whose feature network has learned a little."""
    training = TrainingParams(
        steps=60,
        batch_size=32,
        learning_rate=5e-3,
        warmup_steps=5,
        evaluate_every=60,
        checkpoint_every=60,
        ema_decay=0.9,
    )
    settings = ClassifierSettings(channels=8, features=16)
    params = params.model_copy(update={"classifier": ClassifierParams(settings=settings, training=training)})
    return params, train_classifier(params, project)


def write_params(root: Path, models: dict[str, Any], **blocks: Any) -> None:
    """The project's own params.yaml with small models and few images."""
    raw = yaml.safe_load((TOP / "params.yaml").read_text())
    raw["models"] = models
    raw["data"] |= {"size": 8}
    raw["device"] |= {"accelerator": "cpu", "threads": None}
    raw["evaluate"] = {
        "test_images": None,
        "batch_size": 20,
        "importance_samples": 3,
        "importance_images": 10,
        "sample_images": 20,
        "code_images": 0,
    }
    (root / "params.yaml").write_text(yaml.safe_dump(raw | blocks, sort_keys=False))


def write_info(root: Path, **changes: Any) -> None:
    usual = {
        "name": "digits",
        "size": 8,
        "channels": 1,
        "class_names": NAMES,
        "digest": "0123456789abcdef" * 4,
        "counts": COUNTS,
    }
    (root / "data" / "prepared" / "dataset.json").write_text(json.dumps(usual | changes))


def add_model(root: Path, name: str, **training: Any) -> Path:
    """models/<name> as training leaves it; keys of `training` go into training.json, or into the bookkeeping."""
    block: ModelBlock = load_params(root / "params.yaml").models[name]
    torch.manual_seed(0)
    model = build_model(block, channels=1, size=8, classes=len(NAMES))
    folder = root / "models" / name
    save_model(model, folder, kind=block.kind, class_names=NAMES, about={})
    rows = [
        {"step": 2, "train_loss": 4.0, "validation_loss": 4.2, "train_bits_per_dim": 4.0, "train_learning_rate": 1e-3},
        {"step": 4, "train_loss": 3.0, "train_bits_per_dim": 3.0, "train_gradient_norm": 1.5},
    ]
    (folder / "history.json").write_text(json.dumps({"columns": ["step", "train_loss"], "rows": rows}))
    took = {
        "train_seconds": 12.3456789,
        "images_per_second": 99.9,
        "mlflow_run_id": training.pop("mlflow_run_id", None),
    }
    note_training(folder / WEIGHTS, name, root, took)
    facts = {"parameters": sum(p.numel() for p in model.parameters()), "warnings": []}
    (folder / "training.json").write_text(json.dumps(facts | training))
    return folder


def info_of(root: Path) -> DatasetInfo:
    return read_info(root / "data" / "prepared")
