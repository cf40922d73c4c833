"""The benchmark stage: what it writes and what it measures."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from densitywatch.data.defects import DEFECTS
from densitywatch.detector import detector
from densitywatch.detector.calibrate import calibrate
from densitywatch.detector.member_table import MEMBERS
from densitywatch.outlier_benchmark.auroc import MEASURES
from densitywatch.outlier_benchmark.benchmark import benchmark
from densitywatch.outlier_benchmark.controls import CONTROLS, NO_NETWORK, UNTRAINED
from densitywatch.outlier_benchmark.kinds import KINDS
from densitywatch.outlier_benchmark.tables import DECLARED, DETECTOR, SHOWN
from densitywatch.params import load_params
from tests.marks import marks
from tests.outlier_benchmark.test_panel import PANEL
from tests.small_project import make_project, with_detector

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
@marks("slow")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("benchmark")
    params = make_project(root, ROOT / "params.yaml")
    calibrate(params, root)
    return root, benchmark(params, root)


def test_the_metrics_hold_each_figure_by_panel_member_and_the_worst_of_them(
    measured: tuple[Path, dict[str, Any]],
) -> None:
    root, metrics = measured
    assert json.loads((root / "metrics" / "outliers.json").read_text()) == metrics
    for figure in MEASURES:
        worst = "max" if figure == "fpr_at_95_tpr" else "min"
        assert set(metrics[figure]) == PANEL | {worst}
        values = [metrics[figure][member] for member in PANEL]
        assert metrics[figure][worst] == (max(values) if worst == "max" else min(values))
    assert metrics["auroc"]["uniform_noise"] == 1.0
    for percent in (1, 5):
        found, false = metrics[f"power_at_{percent}"], metrics[f"false_alarms_at_{percent}"]
        assert set(found) == PANEL | {"min"}
        assert found["min"] == min(found[kind] for kind in PANEL)
        assert false["max"] == max(false[kind] for kind in PANEL)
    assert next(iter(metrics)) == "power_at_5", "the figure of the rule that is deployed comes first"
    assert set(metrics["auroc_declared"]) == PANEL | {"min"}
    for name in CONTROLS.values():
        assert set(metrics[f"auroc_{name}"]) == PANEL | {"min"}
        low, value, high = (metrics[f"auroc_gain_over_{name}{end}"] for end in ("_low", "", "_high"))
        assert low <= value <= high
        means = [np.mean([metrics[row][kind] for kind in PANEL]) for row in ("auroc", f"auroc_{name}")]
        assert value == pytest.approx(means[0] - means[1], abs=3e-4)
    assert {"held_out_auroc_detector", "held_out_auroc_pixel_mixture"} <= set(metrics)
    assert metrics["panel_images"] == 40


def test_the_promised_rates_are_measured_on_normal_test_images_with_their_range(
    measured: tuple[Path, dict[str, Any]],
) -> None:
    root, metrics = measured
    with (root / "reports" / "outliers" / "false_alarms.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["promised"] for row in rows] == ["0.01", "0.05", "0.1"]
    for row, percent in zip(rows, (1, 5, 10), strict=True):
        key = f"realised_at_{percent}_percent"
        assert float(row["share of new images"]) == pytest.approx(metrics[key], abs=1e-3)
        inside = metrics[f"{key}_low"] <= metrics[key] <= metrics[f"{key}_high"]
        assert row["holds"] == ("yes" if inside else "no")
        assert float(row["all images"]) == pytest.approx(metrics[key], abs=1e-3)


def test_every_score_has_a_row(measured: tuple[Path, dict[str, Any]]) -> None:
    with (measured[0] / "reports" / "outliers" / "auroc.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["score"] for row in rows[:4]] == [DETECTOR, DECLARED, NO_NETWORK, UNTRAINED]
    # members for photographs want larger images
    assert {row["score"] for row in rows[4:]} == {name for name, member in MEMBERS.items() if member.smallest == 1}
    assert set(rows[0]) == PANEL | {"score", "min"}


def test_the_detector_is_measured_without_each_of_its_members(measured: tuple[Path, dict[str, Any]]) -> None:
    root, metrics = measured
    with (root / "reports" / "outliers" / "ablation.csv").open() as file:
        rows = list(csv.DictReader(file))
    members = detector.load(root / "models" / "detector").facts["members"]
    assert [row.pop("left out") for row in rows] == ["nothing", *members]
    assert {name: float(value) for name, value in rows[0].items()} == pytest.approx(metrics["auroc"], abs=1e-3)


def test_the_first_table_has_the_power_of_the_deployed_rule_next_to_auroc_the_worst_kind_first(
    measured: tuple[Path, dict[str, Any]],
) -> None:
    root, metrics = measured
    figures = json.loads((root / "reports" / "outliers" / "figures.json").read_text())
    assert [figure["file"] for figure in figures[:2]] == ["power.csv", "kinds.png"]
    with (root / "reports" / "outliers" / "power.csv").open() as file:
        rows = list(csv.DictReader(file))
    shares = [float(row["found, 5 % outliers"].split()[0]) for row in rows]
    assert shares == sorted(shares)
    kinds = {words: kind for kind, words in KINDS.items()}
    for row, share in zip(rows, shares, strict=True):
        kind = kinds[row["outliers"]]
        assert share == pytest.approx(metrics["power_at_5"][kind], abs=0.006)
        assert float(row["AUROC"]) == pytest.approx(metrics["auroc"][kind], abs=6e-4)
    assert {kinds[row["outliers"]] for row in rows} == PANEL
    assert set(shares) == {0.0}
    assert "With 150 calibration images no p-value is below 0.0066" in figures[0]["caption"], "and says why"


def test_a_panel_of_the_datasets_own_images_has_defects_and_shows_them(tmp_path: Path) -> None:
    params = make_project(tmp_path, ROOT / "params.yaml", panel="own", folds=0, members=("composition",))
    shutil.rmtree(tmp_path / "data" / "panel")
    calibrate(params, tmp_path)
    metrics = benchmark(params, tmp_path)
    for key in ("power_at_5", "power_at_1", "auroc"):
        assert set(metrics[key]) == {*DEFECTS, "min"}
    folder = tmp_path / "reports" / "outliers"
    entry = next(e for e in json.loads((folder / "figures.json").read_text()) if e["file"] == "kinds.png")
    assert entry["rows"] == ["as they are", *(KINDS[kind] for kind in DEFECTS)]
    with Image.open(folder / "kinds.png") as picture:
        assert picture.height > picture.width / SHOWN * len(DEFECTS)


def test_the_report_page_finds_every_figure_that_is_named(measured: tuple[Path, dict[str, Any]]) -> None:
    folder = measured[0] / "reports" / "outliers"
    figures = json.loads((folder / "figures.json").read_text())
    assert {"auroc.csv", "detector.csv", "false_discoveries.csv", "held_out.csv", "calibration.svg"} <= {
        figure["file"] for figure in figures
    }
    for figure in figures:
        assert (folder / figure["file"]).stat().st_size > 50
        assert figure["title"]
        assert figure["caption"]


def test_two_runs_write_the_same_bytes(measured: tuple[Path, dict[str, Any]]) -> None:
    root, _ = measured
    before = {p: p.read_bytes() for p in (root / "reports" / "outliers").iterdir()}
    params = make_params_again(root)
    benchmark(params, root)
    assert {p: p.read_bytes() for p in (root / "reports" / "outliers").iterdir()} == before


def make_params_again(root: Path) -> Any:

    return with_detector(load_params(ROOT / "params.yaml"))
