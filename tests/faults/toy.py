"""A small DVC project for faults: three stages that write real bytes and a report, under the real flow `retrain`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from densitywatch.files import file_digest
from tests.faults import struck

RUN = Path(__file__).parents[1] / "pipelines" / "stoppable_run.py"
RETRAIN = [sys.executable, str(RUN), "retrain"]
WORK = """
import pathlib, random, sys, time

size, seed, pause = map(float, sys.argv[1:4])
time.sleep(pause)
path = pathlib.Path(sys.argv[4])
try:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(random.Random(seed).randbytes(int(size)))
except OSError as error:
    sys.exit(f"densitywatch: {path}: {error.strerror}")
"""
GRAPH = """
stages:
  fetch:
    cmd: mkdir -p data && echo raw > data/raw
    outs: [data/raw]
  train:
    foreach: {{a: 1, b: 2, c: 3}}
    do:
      cmd: echo ${{key}} >> started.txt && {python} work.py {size} ${{item}} {pause} models/${{key}}
      deps: [data/raw]
      outs: ["models/${{key}}"]
  report:
    cmd: cat models/a models/b models/c | sha256sum > report.txt
    deps: [models/a, models/b, models/c]
    outs: [report.txt]
"""


def make(root: Path, *, size: int = 200_000, pause: float = 0.0, remote: str | None = None) -> Path:
    """A repository whose stages have not run; each of three writes `size` bytes after `pause` seconds."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_bytes((struck.TOP / "params.yaml").read_bytes())
    (root / "work.py").write_text(WORK)
    (root / "dvc.yaml").write_text(GRAPH.format(python=sys.executable, size=size, pause=pause))
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=root, check=True)
    if remote is not None:
        subprocess.run(
            [sys.executable, "-m", "dvc", "remote", "add", "-q", "-d", "there", remote], cwd=root, check=True
        )
    (root / ".gitignore").write_text("/data\n/models\n/report.txt\n/var\n/said.txt\n/started.txt\n")
    return root


def retrain(root: Path, seconds: float = 600) -> tuple[int, str]:
    """The exit code of a run of the flow, and what it said."""
    before = len(said(root))
    process = struck.start(RETRAIN, root, struck.of_project(root) | {"HOME": os.environ["HOME"]})
    try:
        code = process.wait(seconds)
    finally:
        process.kill()
    return code, said(root)[before:]


def said(root: Path) -> str:
    file = root / "said.txt"
    return file.read_text(errors="replace") if file.is_file() else ""


def outputs(root: Path) -> dict[str, str]:
    return {name: file_digest(root / name) for name in ("models/a", "models/b", "models/c", "report.txt")}


def dvc(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root,
        env=struck.of_project(root),
        capture_output=True,
        text=True,
        check=False,
    )
