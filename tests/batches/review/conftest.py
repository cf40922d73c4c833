"""One scored batch and one review server for all tests of the review."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from playwright.sync_api import Browser, Page

from densitywatch.batches.review.server import create_app
from densitywatch.batches.score_batch import score_source
from densitywatch.params import Params
from tests.detector.standin import Brightness, fill, png
from tests.marks import marks


@pytest.fixture
def scored(params: Params, tmp_path: Path) -> Path:
    """Results with four flagged images, one of them with a name that is markup."""
    batch = fill(tmp_path / "batch", 20, bright=3)
    (batch / "=<img src=x onerror=document.title='owned'>\u202e.png").write_bytes(png(250))
    score_source("batch", params, tmp_path, tmp_path / "data/outliers/batch", Brightness())
    return tmp_path / "data/outliers/batch"


@pytest.fixture
@marks("server")
def port(scored: Path, tmp_path: Path) -> Iterator[int]:
    """The port on which the review of `scored` answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(create_app(scored, tmp_path, seed=1), host="127.0.0.1", port=number, log_level="critical")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield number
    server.should_exit = True
    thread.join()


@pytest.fixture
def client(port: int) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture
def header(client: httpx.Client) -> dict[str, str]:
    """What the page sends along with a verdict."""
    return {"X-Review-Token": client.get("/").text.split('const token = "')[1].split('"')[0]}


@pytest.fixture
def page(browser: Browser) -> Page:
    """A phone's browser."""
    return browser.new_page(viewport={"width": 390, "height": 800})
