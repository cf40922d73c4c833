from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from densitywatch.errors import ModelError
from densitywatch.registry.version_files import CALIBRATION, load_calibration


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"nll": np.zeros((3, 3))}, "has no scores of calibration images"),
        ({"nll": np.zeros(3, dtype=np.int64)}, "has no scores of calibration images"),
        ({"other": np.zeros(3)}, "has no scores of calibration images"),
        ({"nll": np.array([1.0, math.nan])}, "no finite numbers"),
        ({"nll": np.array([2.0, 1.0])}, "not the sorted scores"),
        (None, "not a whole safetensors file"),
    ],
)
def test_a_calibration_that_is_none_is_refused_by_name(
    packed: Path, tmp_path: Path, tensors: dict[str, np.ndarray] | None, sentence: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(packed, folder)
    (folder / CALIBRATION).write_bytes(b"\x10\0")
    if tensors is not None:
        safetensors.numpy.save_file(tensors, folder / CALIBRATION)
    with pytest.raises(ModelError, match=sentence):
        load_calibration(folder / CALIBRATION)
