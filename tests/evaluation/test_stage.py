"""The report's place in the graph: a model that is added to params.yaml flows to the page without another line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from tests.evaluation.conftest import TOP

# dvc 3.67 builds its tree of outputs with a property that pygtrie 2.5 is about to drop; the lock file keeps the pair
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning")


@pytest.fixture
def graph(tmp_path: Path) -> set[tuple[str, str]]:
    """(stage, what it waits for) of the project's dvc.yaml with an eighth model in params.yaml."""
    from dvc.repo import Repo

    shutil.copy(TOP / "dvc.yaml", tmp_path)
    raw = yaml.safe_load((TOP / "params.yaml").read_text())
    raw["models"]["eighth"] = raw["models"]["pixelcnn"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    with Repo.init(str(tmp_path), no_scm=True) as repo:
        return {(a.addressing.split(":")[-1], b.addressing.split(":")[-1]) for a, b in repo.index.graph.edges}


@pytest.mark.slow
def test_the_report_waits_for_every_model_and_for_the_data_checks(graph: set[tuple[str, str]]) -> None:
    models = [*yaml.safe_load((TOP / "params.yaml").read_text())["models"], "eighth"]
    awaited = {after for before, after in graph if before == "report"}
    assert {f"evaluate@{name}" for name in models} | {"validate"} <= awaited


def test_every_model_is_trained_before_it_is_evaluated(graph: set[tuple[str, str]]) -> None:
    assert ("evaluate@eighth", "train@eighth") in graph
