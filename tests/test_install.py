"""`make .venv/ready` against an index of this machine's own, with packages of a few lines: what is downloaded, checked,
kept and taken as ready."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
import zipfile
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pip
import pytest

from tests.marks import marks

BACKEND = """
import zipfile
def build_editable(folder, settings=None, metadata=None):
    with zipfile.ZipFile(f"{folder}/project-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("project-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: project\\nVersion: 1\\n")
        wheel.writestr("project-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("project-1.dist-info/RECORD", "")
    return "project-1-py3-none-any.whl"
"""
# venv with a pip that is linked, not unpacked: that takes half a minute on a busy machine and is not what is tested
PYTHON = """#!/bin/sh
if [ "$2" = venv ]; then
    "{python}" "$@" --without-pip && echo "{pip}" > "$(echo "$4"/lib/python*/site-packages)/pip.pth"
else
    exec "{python}" "$@"
fi
"""
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "project"
version = "1"
"""


def wheel(folder: Path, name: str, files: dict[str, str]) -> str:
    """Write NAME-1-py3-none-any.whl and return its line of a lock file."""
    path = folder / f"{name}-1-py3-none-any.whl"
    about = f"{name}-1.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in files.items():
            entry = zipfile.ZipInfo(inside)
            entry.external_attr = 0o100755 << 16
            archive.writestr(entry, text)
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        record = "".join(
            f"{inside},,\n" for inside in [*files, f"{about}/METADATA", f"{about}/WHEEL", f"{about}/RECORD"]
        )
        archive.writestr(f"{about}/RECORD", record)
    return f"{name}==1 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


class Index(ThreadingHTTPServer):
    """Serves the wheels of a folder, counts what was sent whole, and keeps the end of `slow` until told."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.folder = folder
        self.sent: Counter[str] = Counter()
        self.slow = ""
        self.asked_for_slow = threading.Event()
        self.go_on = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/simple"


class _Answer(BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        *_, page, name = self.path.rstrip("/").split("/")
        if page == "simple":
            found = sorted(self.server.folder.glob(f"{name.replace('-', '_')}-*.whl"))
            links = "".join(f'<a href="/files/{path.name}">{path.name}</a>' for path in found)
            return self._send(f"<!doctype html><html><body>{links}</body></html>".encode(), "text/html")
        whole = (self.server.folder / name).read_bytes()
        if self.server.slow and name.startswith(self.server.slow):
            self._head(len(whole), "application/octet-stream")
            self.wfile.write(whole[:100])
            self.wfile.flush()
            self.server.asked_for_slow.set()
            self.server.go_on.wait()
            return None
        self._send(whole, "application/octet-stream")
        self.server.sent[name] += 1
        return None

    def _head(self, length: int, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _send(self, body: bytes, kind: str) -> None:
        self._head(len(body), kind)
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """What is served is counted; nothing is printed."""


@pytest.fixture
@marks("server")
def index(tmp_path: Path) -> Iterator[Index]:
    folder = tmp_path / "wheels"
    folder.mkdir()
    served = Index(folder)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield served
    served.go_on.set()
    served.shutdown()
    served.server_close()


@pytest.fixture
def checkout(tmp_path: Path, project_root: Path, index: Index) -> Path:
    """The project's Makefile beside a project that needs `first` and `second`, and `tool` for its tests."""
    root = tmp_path / "a checkout"
    root.mkdir()
    shutil.copy(project_root / "Makefile", root / "Makefile")
    (root / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    (root / "backend.py").write_text(BACKEND, encoding="utf-8")
    (linked := tmp_path / "linked").mkdir()
    (linked / "pip").symlink_to(Path(pip.__file__).parent)
    python = tmp_path / "python"
    python.write_text(PYTHON.format(python=sys.executable, pip=linked), encoding="utf-8")
    python.chmod(0o755)
    # the installer of the lock file starts the one that this environment was installed with
    real = Path(sys.executable).parent / "uv"
    uv = wheel(index.folder, "uv", {"uv-1.data/scripts/uv": f'#!/bin/sh\nexec "{real}" "$@"\n'})
    first, second = (wheel(index.folder, name, {f"{name}.py": "whole = True\n"}) for name in ("first", "second"))
    tool = wheel(index.folder, "tool", {"tool.py": ""})
    (root / "installer.lock").write_text(uv, encoding="utf-8")
    (root / "requirements.lock").write_text(first + second, encoding="utf-8")
    (root / "requirements-dev.lock").write_text(tool, encoding="utf-8")
    return root


def start(checkout: Path, index: Index, target: str = ".venv/ready") -> subprocess.Popen[str]:
    others = ("PIP_", "UV_", "MAKE", "VIRTUAL_ENV", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    environment |= {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": index.address,
        "PIP_NO_CACHE_DIR": "1",
        "UV_CACHE_DIR": str(checkout.parent / "cache"),
    }
    return subprocess.Popen(
        ["make", f"PYTHON={checkout.parent / 'python'}", target],
        cwd=checkout,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
    )


def make(checkout: Path, index: Index, target: str = ".venv/ready") -> tuple[int, str]:
    process = start(checkout, index, target)
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def imports(checkout: Path, *modules: str) -> bool:
    code = "; ".join(f"import {module}; assert {module}.whole" for module in modules)
    done = subprocess.run([checkout / ".venv/bin/python", "-c", code], check=False, capture_output=True)
    return done.returncode == 0


def test_a_second_try_downloads_only_what_had_not_arrived(checkout: Path, index: Index) -> None:
    index.slow = "second"
    for told in (signal.SIGINT, signal.SIGKILL):
        index.asked_for_slow.clear()
        process = start(checkout, index)
        try:
            # one file is whole and noted in the cache, the other is on its way
            while not (index.asked_for_slow.is_set() and list(checkout.parent.glob("cache/wheels-*/**/first/*.http"))):
                assert process.poll() is None
                time.sleep(0.05)
        finally:
            os.killpg(process.pid, told)
            said, _ = process.communicate(timeout=60)
        assert process.returncode != 0
        assert not (checkout / ".venv/ready").exists(), said

    index.slow = ""
    code, said = make(checkout, index)
    assert code == 0, said
    assert index.sent["first-1-py3-none-any.whl"] == 1, said
    assert index.sent["second-1-py3-none-any.whl"] == 1, said
    assert imports(checkout, "first", "second")

    code, said = make(checkout, index)
    assert code == 0
    assert "up to date" in said


def test_an_environment_that_was_killed_between_two_files_is_made_anew(checkout: Path, index: Index) -> None:
    """A package whose metadata were there counts as installed, whatever else of it was not written yet."""
    code, said = make(checkout, index)
    assert code == 0, said
    assert "3.3 GB to download" in said
    packages = next(checkout.glob(".venv/lib/python*/site-packages"))
    (packages / "first.py").unlink()
    (packages / "pip.pth").unlink()  # as if killed while the environment itself was made
    (checkout / ".venv/ready").unlink()

    code, said = make(checkout, index)
    assert code == 0, said
    assert imports(checkout, "first", "second")
    assert index.sent["first-1-py3-none-any.whl"] == 1


def test_a_lock_file_that_changes_is_followed_and_the_stamp_is_gone_meanwhile(checkout: Path, index: Index) -> None:
    assert make(checkout, index, ".venv/ready-dev")[0] == 0
    lock = checkout / "requirements.lock"
    lock.write_text(lock.read_text() + wheel(index.folder, "third", {"third.py": "whole = True\n"}), encoding="utf-8")
    (index.folder / "third-1-py3-none-any.whl").write_bytes(b"another file")
    code, said = make(checkout, index)
    assert code != 0, said
    assert not (checkout / ".venv/ready").exists()

    lock.write_text(
        lock.read_text().split("third")[0] + wheel(index.folder, "third", {"third.py": "whole = True\n"}),
        encoding="utf-8",
    )
    code, said = make(checkout, index)
    assert code == 0, said
    assert imports(checkout, "first", "third")


def test_a_file_that_is_not_the_one_of_the_lock_file_is_not_installed(checkout: Path, index: Index) -> None:
    wheel(index.folder, "second", {"second.py": "whole = False  # somebody else's\n"})
    code, said = make(checkout, index)
    assert code != 0
    assert "Hash mismatch for `second==1`" in said
    assert not (checkout / ".venv/ready").exists()
    assert not list(checkout.glob(".venv/lib/python*/site-packages/second*"))


def test_a_run_does_not_download_what_only_the_tests_need(checkout: Path, index: Index) -> None:
    assert make(checkout, index)[0] == 0
    assert not list(checkout.glob(".venv/lib/python*/site-packages/tool*"))
    code, said = make(checkout, index, ".venv/ready-dev")
    assert code == 0, said
    assert list(checkout.glob(".venv/lib/python*/site-packages/tool.py"))
    assert (checkout / ".venv/ready").exists()
    code, said = make(checkout, index, ".venv/ready-dev")
    assert code == 0
    assert "up to date" in said


LOCKS = ("installer.lock", "requirements.lock", "requirements-dev.lock")


def requirements(path: Path) -> dict[str, str]:
    """Name -> the whole entry, with its continued lines."""
    joined = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    return {re.split(r"[=<>!~ ;\[]", line, maxsplit=1)[0]: line for line in lines}


@pytest.mark.parametrize("name", LOCKS)
def test_every_line_of_a_lock_file_has_a_version_and_hashes_and_no_address(project_root: Path, name: str) -> None:
    entries = requirements(project_root / name)
    assert entries
    for entry in entries.values():
        assert re.match(r"[a-z0-9.-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", entry), entry
        assert "://" not in entry, entry


def test_the_lock_files_hold_what_the_project_asks_for_each_package_once(project_root: Path) -> None:
    project = tomllib.loads((project_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    run, dev = (requirements(project_root / name) for name in LOCKS[1:])
    assert not run.keys() & dev.keys()

    def names(asked: list[str]) -> set[str]:
        return {re.split(r"[=<>!~ ;\[]", each, maxsplit=1)[0].lower().replace(".", "-") for each in asked}

    assert names(project["dependencies"]) <= run.keys()
    extras = project["optional-dependencies"]
    assert names([each for extra in extras.values() for each in extra]) <= run.keys() | dev.keys()
    assert not {"pytest", "playwright", "mypy", "moto"} & run.keys()
