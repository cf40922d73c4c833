"""What an earlier release registered: MLflow runs the serving file of a version, which imports densitywatch.answers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from densitywatch.registry import versions as registry
from tests.registry.registry_project import images, tiny_params, write_data, write_model

SERVING = Path(__file__).with_name("serving_of_0_1.py")
"""The serving file of 0.1, byte for byte."""


def test_a_version_of_the_previous_release_answers_as_one_of_this_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    params = tiny_params()
    write_data(tmp_path)
    write_model(tmp_path, "pixelcnn")
    address = f"models:/densitywatch-pixelcnn/{registry.register('pixelcnn', params, tmp_path)}"
    version = registry.download_model(address, params, tmp_path).parents[1]
    answers = mlflow.pyfunc.load_model(str(version)).predict(images(3, 30))

    assert "densitywatch.answers" not in (version / "serving.py").read_text(encoding="utf-8")
    (version / "serving.py").write_bytes(SERVING.read_bytes())
    monkeypatch.delitem(sys.modules, "densitywatch.answers", raising=False)
    assert mlflow.pyfunc.load_model(str(version)).predict(images(3, 30)) == answers
    assert "densitywatch.answers" in sys.modules, "the serving file of 0.1 was not run"
    assert registry.download_model(address, params, tmp_path).parents[1] == version
