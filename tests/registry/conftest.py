from __future__ import annotations

import re
from pathlib import Path

import pytest

from densitywatch.detector.calibrate import calibrate
from densitywatch.params import Params
from densitywatch.registry import versions as registry
from densitywatch.registry.service import Service
from densitywatch.registry.version_files import pack_model
from pipelines import retrain
from tests.registry.registry_project import tiny_params, write_data, write_model
from tests.registry.shelf import Shelf, compare


@pytest.fixture(scope="session")
def params() -> Params:
    return tiny_params()


@pytest.fixture(autouse=True)
def _no_address_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project and a store for the tests of one file; each test uses its own name of a model."""
    root = tmp_path_factory.mktemp("project")
    write_data(root)
    return root


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a trained pixelcnn and a calibrated detector."""
    root = tmp_path_factory.mktemp("calibrated")
    write_data(root)
    write_model(root, "pixelcnn", steps=40)
    calibrate(tiny_params(), root)
    return root


@pytest.fixture(scope="session")
def packed(calibrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a version of that pixelcnn."""
    folder = tmp_path_factory.mktemp("packed")
    pack_model("pixelcnn", calibrated, folder)
    return folder


@pytest.fixture(scope="session")
def service(packed: Path) -> Service:
    return Service(packed, "crop")


@pytest.fixture
def shelf(params: Params, root: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """A model with three champions so far, each better than the one before: 3.0, 2.0, 1.0."""

    class Log:
        info = warning = staticmethod(lambda *_: None)

    class NoSlot:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(registry, "gate", compare)
    monkeypatch.setattr(retrain, "get_run_logger", Log)
    monkeypatch.setattr(retrain, "device_slot", NoSlot)
    shelf = Shelf(re.sub(r"\W", "_", request.node.name)[-60:], params, root)
    for figure in (3.0, 2.0, 1.0):
        number = shelf.add(figure)
        assert shelf.promote().passed
        assert shelf.champion == number
    return shelf
