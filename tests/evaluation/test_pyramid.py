"""A pyramid goes the whole way of a density: trained, measured, coded into a file that another process decodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from densitywatch.evaluation.evaluate import evaluate_model
from densitywatch.params import load_params
from densitywatch.training.train import train_model
from tests.evaluation.conftest import MODELS, TRAINING, write_params


@pytest.mark.slow
def test_a_pyramid_is_trained_measured_and_coded_as_every_density_is(project: Path) -> None:
    settings = {"coarsest": 4, "coarse_channels": 4, "coarse_dilations": [1], "context_channels": 4, "channels": 4}
    block = {
        "kind": "pixelcnn_pyramid",
        "settings": settings,
        "training": TRAINING | {"optimizer": "muon", "precision": "bf16-mixed"},
    }
    write_params(project, MODELS | {"pyramid": block})
    params = load_params(project / "params.yaml")
    train_model("pyramid", params, project)
    metrics = evaluate_model("pyramid", params, project)
    assert metrics["code_file_bits_per_dim"] == pytest.approx(metrics["code_computed_bits_per_dim"], rel=0.1)
    assert (project / "reports" / "models" / "pyramid" / "samples.png").is_file()
