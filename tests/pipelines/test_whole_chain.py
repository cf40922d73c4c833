"""`make run` on a few hundred real images, in a copy of this checkout: what breaks here breaks `make run`."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from pipelines import dvc_graph
from tests.marks import marks
from tests.pipelines.checkout import copy_checkout, own_environment, run

pytestmark = pytest.mark.timeout(2400)  # minutes on a free machine; a busy one takes its time

METRICS = {
    "pixelcnn": ("bits_per_dim",),
    "vae": ("elbo_bits_per_dim", "iwae_bits_per_dim"),
}


@dataclass(frozen=True)
class Project:
    """A copy of the checkout under the tiny profile, and what its first run printed."""

    root: Path
    environment: dict[str, str]
    said: str
    exit_code: int

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return run(self.root, self.environment, *command)


@pytest.fixture(scope="module")
@marks("server")
def project(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    root = tmp_path_factory.mktemp("checkout")
    copy_checkout(project_root, root)
    environment = own_environment(root)
    laid = run(root, environment, "densitywatch", "profile", "tiny")
    assert laid.returncode == 0, laid.stdout
    first = run(root, environment, "pipelines", "retrain")
    return Project(root, environment, first.stdout, first.returncode)


def test_the_chain_runs_to_its_end_and_prints_each_stage_with_its_seconds(project: Project) -> None:
    assert project.exit_code == 0, project.said[-6000:]
    steps = {step["name"]: step for step in json.loads((project.root / "var" / "run.json").read_text())["steps"]}
    for stage in dvc_graph.read_graph(project.root):
        assert steps[stage.name]["outcome"] == "ran"
        assert stage.name in project.said
    assert "everything else" in project.said
    assert "Traceback" not in project.said


def test_every_model_leaves_weights_figures_pictures_and_a_champion(project: Project) -> None:
    from densitywatch.params import load_params
    from densitywatch.registry.versions import download_model

    params = load_params(project.root / "params.yaml")
    for name in params.models:
        assert (project.root / "models" / name / "model.safetensors").is_file()
        figures = json.loads((project.root / "metrics" / f"{name}.json").read_text())
        for key in ("parameters", "train_seconds", *METRICS.get(name, ())):
            assert figures[key] > 0, (name, key)
        assert list((project.root / "reports" / "models" / name).glob("*.*"))
        champion = download_model(f"models:/densitywatch-{name}@champion", params, project.root)
        assert (champion / "model.safetensors").is_file()
    assert (download_model("models:/densitywatch-detector@champion", params, project.root) / "detector.json").is_file()


def test_the_page_shows_every_model_and_needs_nothing_from_elsewhere(project: Project) -> None:
    page = (project.root / "reports" / "index.html").read_text(encoding="utf-8")
    for name in yaml.safe_load((project.root / "params.yaml").read_text())["models"]:
        assert name in page
    assert 'src="http' not in page
    assert "<link" not in page or 'href="http' not in page.split("</head>")[0]


def test_the_demo_batch_has_a_row_for_every_file_and_its_two_broken_ones_are_quarantined(project: Project) -> None:
    batch, results = project.root / "data" / "inbox" / "demo", project.root / "data" / "outliers" / "demo"
    rows: list[dict[str, Any]] = pq.read_table(results / "scores.parquet").to_pylist()
    files = {path.name for path in batch.iterdir() if path.name != "_SUCCESS"}
    assert {Path(row["path"]).name for row in rows} == files
    assert len(rows) == len(files)
    quarantined = {Path(row["path"]).name: row["reason"] for row in rows if row["status"] == "quarantined"}
    assert set(quarantined) == {"truncated.png", "text.png"}
    assert all(quarantined.values())
    summary = json.loads((results / "summary.json").read_text())
    assert (summary["files"], summary["quarantined"]) == (len(files), 2)
    assert (results / "report.html").is_file()


def test_every_example_runs_on_what_the_run_left(project: Project) -> None:
    names = sorted(path.name for path in (project.root / "examples").glob("*.py"))
    one_by_one = (
        "import runpy, sys\nfor path in list(sys.argv[1:]): sys.argv = [path]; runpy.run_path(path, {}, '__main__')"
    )
    done = project.run("-c", one_by_one, *(f"examples/{name}" for name in names))
    assert done.returncode == 0, done.stdout[-4000:]
    assert names[0] == "01_load_and_sample.py"
    assert "decoded elsewhere, byte for byte" in done.stdout


def test_a_second_run_says_that_all_is_up_to_date_and_touches_nothing(project: Project) -> None:
    lock = (project.root / "dvc.lock").read_bytes()
    pages = {path: path.stat().st_mtime_ns for path in (project.root / "reports").rglob("*") if path.is_file()}
    again = project.run("pipelines", "retrain")
    assert again.returncode == 0, again.stdout
    assert again.stdout.startswith("everything is up to date")
    assert (project.root / "dvc.lock").read_bytes() == lock
    assert {path: path.stat().st_mtime_ns for path in pages} == pages


def test_dvc_alone_agrees_without_any_server(project: Project) -> None:
    looks = {"look": ["always changed"]}  # at what DVC does not look at; it found the same
    assert json.loads(project.run("dvc", "status", "--json").stdout) == looks
    lock = (project.root / "dvc.lock").read_bytes()
    assert re.findall(r"Running stage '(.+)'", project.run("dvc", "repro").stdout) == ["look"]
    assert (project.root / "dvc.lock").read_bytes() == lock


def test_a_lost_registry_is_filled_again_without_training_again(project: Project) -> None:
    (project.root / "mlflow.db").unlink()
    again = project.run("pipelines", "retrain")
    assert again.returncode == 0, again.stdout[-6000:]
    steps = {
        step["name"]: step["outcome"] for step in json.loads((project.root / "var" / "run.json").read_text())["steps"]
    }
    assert {steps[stage.name] for stage in dvc_graph.read_graph(project.root) if not stage.always} == {"skipped"}
    assert steps["release pixelcnn"] == "promoted"
