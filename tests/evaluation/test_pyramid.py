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
    few = {"batch_size": 20, "importance_samples": 3, "sample_images": 4, "code_images": 2}
    write_params(project, MODELS | {"pyramid": block}, evaluate=few)
    params = load_params(project / "params.yaml")
    train_model("pyramid", params, project)
    metrics = evaluate_model("pyramid", params, project)
    # another process decoded the file, or there would be no figures; its header has 4.5 bits for each of 128 values
    assert metrics["code_images"] == 2
    assert metrics["code_file_bits_per_dim"] < metrics["code_computed_bits_per_dim"] + 5
    assert (project / "reports" / "models" / "pyramid" / "samples.png").is_file()
