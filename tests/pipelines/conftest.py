"""A small DVC project with the shape of the real one: its stages are shell commands that end at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.marks import marks

PARAMS = """
seed: 1
models:
  a: {kind: one, steps: 1}
  b: {kind: one, steps: 1}
"""
GRAPH = """
stages:
  fetch:
    cmd: mkdir -p data && echo raw > data/raw
    outs: [data/raw]
  train:
    foreach: ${models}
    do:
      cmd: mkdir -p models && echo ${key} ${item.steps} > models/${key}
      params: ["models.${key}"]
      deps: [data/raw]
      outs: ["models/${key}"]
  evaluate:
    foreach: ${models}
    do:
      cmd: mkdir -p metrics && cp models/${key} metrics/${key}.txt
      deps: ["models/${key}"]
      outs: ["metrics/${key}.txt"]
  report:
    cmd: cat metrics/*.txt > report.txt
    deps: [metrics]
    outs: [report.txt]
"""


@pytest.fixture
@marks("slow")
def toy(tmp_path: Path) -> Path:
    """A fresh repository with two models, none of its stages run yet."""
    root = tmp_path / "toy"
    root.mkdir()
    (root / "params.yaml").write_text(PARAMS)
    (root / "dvc.yaml").write_text(GRAPH)
    (root / "notes.txt").write_text("tracked by DVC beside the stages\n")
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=root, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "add", "-q", "notes.txt"], cwd=root, check=True)
    return root
