"""What all tests share: no telemetry, one Prefect server for those that need it, and a browser that must be there."""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from densitywatch import environment
from tests.marks import marks, pytest_configure, pytest_runtest_protocol  # noqa: F401
from tests.marks import pytest_collection_modifyitems as add_markers
from tests.postgres import database, database_server  # noqa: F401 fixtures

environment.settle(os.environ)  # before any test file imports prefect, mlflow or great_expectations
# networks of tests are small: two threads wait for each other most of the time, for minutes where other programs run
os.environ.setdefault("OMP_NUM_THREADS", "1")

# every run tries the same examples; make faults is for finding new ones
settings.register_profile("the same examples", derandomize=True)
settings.load_profile("the same examples")

ROOT = Path(__file__).resolve().parent.parent
LONGEST = (
    "pipelines/test_whole_chain.py",
    "pipelines/test_gpu_workers.py",
    "data/decoding/test_large_images.py",
    "training/test_second_device.py",
    "pipelines/test_loop.py",
    "pipelines/test_stoppable_runs.py",
    "pipelines/test_services.py",
    "pipelines/test_team.py",
    "pipelines/test_detect_outliers.py",
    "outlier_benchmark/test_benchmark.py",
    "training/test_loop.py",
    "pipelines/test_reads.py",
    "pipelines/test_stage_tasks.py",
    "batches/test_ray_cluster.py",
)
"""Files of tests that take minutes, the longest first. They come first: one that began last would leave the other
process of `make test` without work."""


@pytest.hookimpl(tryfirst=True)  # before -m chooses among the items
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    add_markers(items)
    place = {ROOT / "tests" / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Weights that a test draws without a generator are the same in every order of the tests and in every process."""
    random.seed(0)
    # only what the file of tests has imported: importing them for the others would take seconds
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The checkout that the tests belong to."""
    return ROOT


@pytest.fixture(scope="session")
@marks("browser")
def chromium() -> str:
    """Debian's browser; without it the tests of pages fail rather than pass unseen."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.fail("the tests of pages need Chromium: run `sudo apt-get install chromium` and then `make test` again")
    return found


@pytest.fixture(scope="session")
@marks("server")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Prefect server of the tests' own, with a database of its own, for as long as the session lasts."""
    from prefect.testing.utilities import prefect_test_harness

    os.environ.setdefault("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
    with prefect_test_harness(server_startup_timeout=300):
        yield


@pytest.fixture
def browser(chromium: str) -> Iterator[Any]:
    """A headless Chromium driven by playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()
