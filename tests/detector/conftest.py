"""Calibrated projects that the tests of the detector share; a test that changes one copies it first."""

from __future__ import annotations

from pathlib import Path

import pytest

from densitywatch.detector.calibrate import calibrate, fitting_data
from densitywatch.detector.detector import Detector, load
from densitywatch.detector.feature_cache import Models
from densitywatch.detector.member import FittingData
from densitywatch.params import Params
from tests.small_project import make_project


@pytest.fixture(scope="session")
def project(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    """A calibrated project."""
    root = tmp_path_factory.mktemp("detector")
    params = make_project(root, project_root / "params.yaml")
    calibrate(params, root)
    return root, params


@pytest.fixture(scope="session")
def loaded(project: tuple[Path, Params]) -> Detector:
    return load(project[0] / "models" / "detector")


@pytest.fixture(scope="session")
def declared_project(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    """A project whose params declare every transformation; it is not calibrated."""
    root = tmp_path_factory.mktemp("scores")
    return root, make_project(root, project_root / "params.yaml", declared=("flip", "rotate", "invert"))


@pytest.fixture(scope="session")
def given(declared_project: tuple[Path, Params]) -> tuple[FittingData, Models]:
    """What members are fitted on there, and the models."""
    return fitting_data(declared_project[1], declared_project[0])
