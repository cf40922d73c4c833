"""docs/pictures/make.py in a small project: the notebook runs to its last cell, and the pictures come out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from PIL import Image

from densitywatch.params import load_params
from tests.marks import marks

ROOT = Path(__file__).parents[2]
TOUR = ROOT / "examples" / "tour.ipynb"
pytestmark = pytest.mark.timeout(1200)  # a browser, a kernel and every model: a busy machine takes its time


@pytest.fixture(scope="module")
@marks("browser")
def made(finished: Path, chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what make.py made: the pictures, and the notebook with its outputs."""
    out = tmp_path_factory.mktemp("pictures")
    (out / TOUR.name).write_bytes(TOUR.read_bytes())
    command = [sys.executable, ROOT / "docs" / "pictures" / "make.py", "--out", out, "--tour", out / TOUR.name]
    others = ("MLFLOW_", "PREFECT_", "IPYTHON", "JUPYTER")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    own = {
        "PYTHONPATH": str(ROOT / "src"),
        "IPYTHONDIR": str(out / "ipython"),
        "JUPYTER_DATA_DIR": str(out / "jupyter"),
    }
    done = subprocess.run(command, cwd=finished, env=kept | own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


def cells(path: Path) -> list[Any]:
    """The notebook's code cells."""
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def text(cell: Any) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def test_the_notebook_runs_to_its_end_and_shows_samples_flags_and_maps(made: Path) -> None:
    ran = cells(made / TOUR.name)
    assert [cell.execution_count for cell in ran] == list(range(1, len(ran) + 1))
    shown = [cell.id for cell in ran if any("image/png" in output.get("data", {}) for output in cell.outputs)]
    assert shown == ["sample", "completed", "flagged", "conditional"]
    said = {cell.id: text(cell) for cell in ran}
    assert said["load"].startswith("PixelCNN: 14 x 14 pixels")
    assert "files: 147\nscored: 145\nquarantined: 2\n" in said["scored"]
    assert said["reasons"].count("p-value") == 3


def test_a_row_of_images_comes_from_every_model_and_all_are_on_one_sheet(made: Path, finished: Path) -> None:
    names = ["real_images", *load_params(finished / "params.yaml").models]
    assert sorted(path.stem for path in (made / "samples").glob("*.webp")) == sorted(names)
    with Image.open(made / "samples" / "pixelcnn.webp") as row, Image.open(made / "family.webp") as sheet:
        assert row.size == (587, 56)
        assert sheet.size == (190 + 587, len(names) * 62)
        assert np.asarray(row).std() > 10, "the row is blank"


def test_the_picture_of_the_report_is_what_a_browser_shows(made: Path) -> None:
    with Image.open(made / "report.webp") as picture:
        assert picture.width == 1080
        assert picture.height > 500
        assert np.asarray(picture).std() > 10, "the picture is blank"


def test_the_notebook_in_git_is_small_and_names_no_place_of_the_machine_it_ran_on() -> None:
    whole = TOUR.read_text(encoding="utf-8")
    assert len(whole) < 200_000
    assert not re.search(r"/(home|root|tmp|Users|work)/", whole)


def test_the_notebook_in_git_holds_the_outputs_of_one_whole_run() -> None:
    ran = cells(TOUR)
    assert [cell.execution_count for cell in ran] == list(range(1, len(ran) + 1))
    assert {output.output_type for cell in ran for output in cell.outputs} == {"stream", "execute_result"}
    assert "files: 527" in "".join(text(cell) for cell in ran)
