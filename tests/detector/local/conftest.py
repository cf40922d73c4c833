"""The models that local members read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from densitywatch.models.pixelcnn_pyramid import PixelCNNPyramid, Settings
from densitywatch.models.storage import save_model


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pyramid for grey images of 64 pixels as it is before its training: it guesses from slopes."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    settings = Settings(coarse_channels=4, coarse_dilations=(1,), context_channels=4, context_layers=0, channels=2)
    model = PixelCNNPyramid(settings, channels=1, size=64, classes=0)
    save_model(model, folder / "pixelcnn_pyramid", kind="pixelcnn_pyramid", class_names=(), about={})
    return folder
