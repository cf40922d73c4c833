"""A project as `make run` leaves it under the tiny profile, made in seconds: images of bars and small models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from densitywatch.batches.score_batch import score_source
from densitywatch.data.demo_batch import make_demo_batch
from densitywatch.detector.calibrate import calibrate
from densitywatch.models.storage import build_model, save_model
from densitywatch.params import load_params
from densitywatch.profiles import apply_profile
from densitywatch.registry.versions import promote, register
from tests.marks import marks
from tests.small_project import SIZE, make_project

LABELS = ("upper", "lower")


@pytest.fixture(scope="session")
@marks("slow")
def finished(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's top folder: params.yaml, prepared data, every model, the detector, champions, the demo batch."""
    root = tmp_path_factory.mktemp("finished")
    (root / "profiles").mkdir()
    for name in ("params.yaml", "profiles/tiny.yaml"):
        (root / name).write_bytes((project_root / name).read_bytes())
    apply_profile("tiny", root)
    text = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    text["data"]["size"] = SIZE
    (root / "params.yaml").write_text(yaml.safe_dump(text, sort_keys=False), encoding="utf-8")

    make_project(root, root / "params.yaml")  # with a PixelCNN and a VAE
    params = load_params(root / "params.yaml")
    for name, block in params.models.items():
        if not (root / "models" / name).exists():
            torch.manual_seed(0)
            model = build_model(block, channels=1, size=SIZE, classes=len(LABELS))
            save_model(model, root / "models" / name, kind=block.kind, class_names=LABELS, about={})
    calibrate(params, root)
    make_demo_batch(params, root)
    score_source("data/inbox/demo", params, root)
    for name in ("pixelcnn", "detector"):
        register(name, params, root)
        assert promote(name, params, root).passed
    return root
