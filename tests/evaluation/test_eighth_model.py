"""A model is one file and one block of params.yaml; everything else finds it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import densitywatch.models
from densitywatch.evaluation.evaluate import evaluate_model
from densitywatch.evaluation.report.report import write_report
from densitywatch.params import load_params
from densitywatch.registry.versions import register
from densitywatch.training.train import train_model
from tests.evaluation.conftest import MODELS, TRAINING, write_params

# every pixel on its own, over all 256 values: the simplest exact density there is
FILE = """
import torch
from pydantic import BaseModel, ConfigDict
from torch import nn


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    start: float = 0.0


class Pixelwise(nn.Module):
    def __init__(self, settings, *, channels, size, classes):
        super().__init__()
        self.settings, self.channels, self.size, self.classes = settings, channels, size, classes
        self.logits = nn.Parameter(torch.full((channels, size, size, 256), settings.start))

    def log_prob(self, x, labels=None):
        table = self.logits.log_softmax(-1).expand(len(x), -1, -1, -1, -1)
        return table.gather(-1, x.long()[..., None]).sum((1, 2, 3, 4))

    def loss(self, x, labels=None):
        loss = -self.log_prob(x).mean() / x[0].numel() / 0.6931471805599453
        return loss, {"bits_per_dim": loss.detach()}

    def sample(self, n, labels=None, generator=None):
        flat = self.logits.flatten(0, 2).softmax(-1)
        drawn = torch.multinomial(flat, n, replacement=True, generator=generator)
        return drawn.T.reshape(n, self.channels, self.size, self.size).to(torch.uint8)


MODEL = Pixelwise
"""


@pytest.mark.slow
def test_a_file_and_a_block_go_through_train_evaluate_register_and_report(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = project / "more_models"
    files.mkdir()
    (files / "pixelwise.py").write_text(FILE)
    monkeypatch.setattr(densitywatch.models, "__path__", [*densitywatch.models.__path__, str(files)])
    training = TRAINING | {"warmup_steps": 1, "learning_rate": 0.1, "steps": 8}
    write_params(project, MODELS | {"eighth": {"kind": "pixelwise", "settings": {"start": 0.5}, "training": training}})
    params = load_params(project / "params.yaml")

    train_model("eighth", params, project)
    metrics = evaluate_model("eighth", params, project)
    version = register("eighth", params, project)
    page = write_report(params, project).read_text()

    assert metrics["bits_per_dim"] < 8, "it learned something"
    assert metrics["mlflow_run_id"]
    assert json.loads((project / "metrics" / "eighth.json").read_text()) == metrics
    assert version == 1
    assert f"{metrics['bits_per_dim']:.3f}" in page
    assert 'id="model-eighth"' in page
