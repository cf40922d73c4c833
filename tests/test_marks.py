"""What keeps `make test-fast` free of servers and browsers, tried on small test files of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.marks import what_starts

SETTINGS = """
[pytest]
markers =
    server: starts one
    browser: starts one
"""
PORT = """
import socket
import pytest
from tests.marks import marks

def open_port():
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
"""


def run_pytest(folder: Path, tests: str, *options: str) -> str:
    """What pytest says of these tests, with the markers checked."""
    root = Path(__file__).parents[1]
    (folder / "pytest.ini").write_text(SETTINGS)
    (folder / "test_it.py").write_text(PORT + tests)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.marks", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(root), "COLUMNS": "300"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.stdout


def test_a_test_that_opens_a_port_without_the_marker_fails_and_is_told_what_to_write(tmp_path: Path) -> None:
    said = run_pytest(tmp_path, "def test_bare(): open_port()\n@pytest.mark.server\ndef test_marked(): open_port()\n")
    assert "1 failed, 1 passed" in said
    assert "test_it.py::test_bare opens a port of 127.0.0.1 and lacks the marker; put @pytest.mark.server above" in said


def test_a_fixture_gives_its_marker_to_every_test_that_asks_for_it_through_others_too(tmp_path: Path) -> None:
    said = run_pytest(
        tmp_path,
        "@pytest.fixture\n@marks('server')\ndef served(): open_port()\n"
        "@pytest.fixture\ndef address(served): pass\n"
        "def test_direct(served): pass\ndef test_through_another(address): pass\ndef test_none(): pass\n",
        "-m",
        "not server",
    )
    assert "1 passed, 2 deselected" in said


@pytest.mark.parametrize(
    ("command", "marker"),
    [
        (["/usr/bin/chromium", "--headless"], "browser"),
        (["/lib/python3.11/site-packages/playwright/driver/node", "cli.js"], "browser"),
        (["python", "-m", "pipelines", "retrain"], "server"),
        (["python", "-m", "pipelines.services", "up"], "server"),
        (["python", "-c", "from pipelines import server; server.start_temporary()"], "server"),
        (["python", "-m", "mlflow", "server", "--port", "1"], "server"),
        (["/usr/lib/postgresql/17/bin/pg_ctl", "start"], "server"),
        (["densitywatch", "review", "out"], "server"),
        (["git", "log", "--", "pipelines", "chromium.md"], None),
        (["python", "-m", "dvc", "repro"], None),
        ([b"make", b"lint"], None),
    ],
)
def test_the_programs_of_servers_and_browsers_are_known(command: list[str | bytes], marker: str | None) -> None:
    found = what_starts("subprocess.Popen", ("program", command, None, None))
    assert (found and found[0]) == marker


def test_a_socket_in_a_folder_is_no_port() -> None:
    assert what_starts("socket.bind", (None, "/tmp/door")) is None
