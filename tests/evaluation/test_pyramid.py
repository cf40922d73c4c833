"""A pyramid goes the whole way of a density: trained, measured, coded into a file that another process decodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from densitywatch.errors import DataError, ModelError
from densitywatch.evaluation.evaluate import evaluate_model
from densitywatch.evaluation.measures import code_length
from densitywatch.evaluation.measures.code_length import verify_likelihood
from densitywatch.params import load_params
from densitywatch.training.train import train_model
from tests.evaluation.conftest import MODELS, TRAINING, write_params


@pytest.mark.slow
def test_a_pyramid_is_trained_measured_and_coded_as_every_density_is(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert metrics["bits_per_dim"] > 0
    assert metrics["code_images"] == 2
    assert metrics["code_file_bits_per_dim"] > metrics["code_computed_bits_per_dim"] > 0
    assert (project / "reports" / "models" / "pyramid" / "samples.png").is_file()

    out = project / "out.dwcode"
    length = verify_likelihood("pyramid", 2, params, project, out)
    assert length.images == 2
    assert length.file == 8 * out.stat().st_size / (2 * 64)
    # the header has 4.5 bits for each of 128 values; a value that is hardly possible takes 22 bits and not more
    assert length.file < length.computed + 5
    assert verify_likelihood("pixelcnn", 2, params, project).images == 2
    with pytest.raises(ModelError, match="at least one"):
        verify_likelihood("pyramid", 0, params, project)
    monkeypatch.setattr(
        code_length, "decode_elsewhere", lambda _file, _folder, out: np.save(out, np.zeros((2, 1, 8, 8), np.uint8))
    )
    with pytest.raises(DataError, match="this likelihood is not proven"):
        verify_likelihood("pyramid", 2, params, project)
