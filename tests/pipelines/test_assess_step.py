"""A source that brings defects of its own is assessed at the end of a run; nothing but the page comes of it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from densitywatch.batches.assess import assessment
from densitywatch.params import load_params
from pipelines import retrain


def test_the_sorted_defects_of_the_source_are_assessed_under_its_name(
    project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def assess(*arguments: Any) -> dict[str, Any]:
        asked.append(arguments)
        return {"kinds": [{"kind": "defective"}, {"kind": "possibly_defective"}]}

    monkeypatch.setattr(retrain, "device_slot", nullcontext)
    monkeypatch.setattr(assessment, "assess", assess)
    params = load_params(project_root / "params.yaml")
    params = params.model_copy(update={"data": params.data.model_copy(update={"source": "cells"})})
    step = retrain.assess_sorted.fn(params, tmp_path)
    assert asked == [("data/raw/sorted", params, tmp_path, tmp_path / "data/assessments/cells")]
    assert (step.name, step.outcome) == ("assess", "2 kinds")
