"""A machine without a C++ compiler that works: models are trained in the eager form, and one line says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from densitywatch import devices
from densitywatch.params import DeviceParams
from tests.training.every_kind import TOP, make_project

pytestmark = pytest.mark.slow

LINE = "models run in the eager form"
BROKEN = "#!/bin/sh\ncat > /dev/null\necho 'fatal error: Python.h: No such file or directory' >&2\nexit 1\n"


def programs(folder: Path, compiler: str | None) -> Path:
    """A folder for PATH with git and, where given, a g++ of that text; nothing else that compiles."""
    folder.mkdir()
    for name in ("git", "sh", "cat"):
        (folder / name).symlink_to(str(shutil.which(name)))
    if compiler is not None:
        (folder / "g++").write_text(compiler, encoding="utf-8")
        (folder / "g++").chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("compiler", "why"),
    [(None, "no C++ compiler g++ on the PATH: "), (BROKEN, "the C++ compiler g++ ends with code 1; python3-dev has ")],
    ids=["none", "broken"],
)
def test_without_a_compiler_that_works_a_model_is_trained_and_one_line_says_that_it_is_eager(
    tmp_path: Path, compiler: str | None, why: str
) -> None:
    root = tmp_path / "project"
    root.mkdir()
    make_project(root, compile="auto")
    params = yaml.safe_load((root / "params.yaml").read_text())
    # two models in one process, as two stages of one run
    params["models"] = {name: params["models"][name] for name in ("pixelcnn", "conditional_pixelcnn")}
    for block in params["models"].values():
        block["training"]["compile"] = True
    (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    script = (
        "import sys; from pathlib import Path; from densitywatch.params import load_params\n"
        "from densitywatch.training.train import train_model\n"
        "root = Path(sys.argv[1]); params = load_params(root / 'params.yaml')\n"
        "for name in params.models: train_model(name, params, root)\n"
    )
    others = ("MLFLOW_", "LOCAL_RANK", "CXX", devices.SAID)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    environment |= {
        "PATH": str(programs(tmp_path / "bin", compiler)),
        "PYTHONPATH": f"{TOP / 'src'}{os.pathsep}{TOP}",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script, root], env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for name in params["models"]:
        assert (root / "models" / name / "model.safetensors").is_file()
    said = [line for line in done.stderr.splitlines() if LINE in line]
    assert len(said) == 1, done.stderr
    assert said[0].startswith(why)
    assert "Traceback" not in done.stderr  # of a compiler that was tried all the same
    assert "InductorError" not in done.stderr


def test_the_line_is_said_once_in_a_run_and_not_where_compiling_was_not_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(programs(tmp_path / "bin", None)))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv(devices.SAID, "")  # so that what is set below goes with the test
    monkeypatch.delenv(devices.SAID)
    devices.compiler_problem.cache_clear()
    device = DeviceParams(accelerator="cpu")
    try:
        devices.say_if_eager(device.model_copy(update={"compile": False}))
        assert capsys.readouterr().err == ""
        devices.say_if_eager(device)
        assert capsys.readouterr().err.count(LINE) == 1
        # what a stage of the same run inherits
        code = "from tests.training import test_eager as t; t.devices.say_if_eager(t.DeviceParams(accelerator='cpu'))"
        stage = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": f"{TOP / 'src'}{os.pathsep}{TOP}"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert LINE not in stage.stderr
    finally:
        devices.compiler_problem.cache_clear()
