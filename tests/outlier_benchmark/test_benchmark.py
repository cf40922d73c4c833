"""The benchmark stage: what it writes, what it measures, and that nothing else can see the panel."""

from __future__ import annotations

import ast
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from densitywatch.data.dataset import read_info
from densitywatch.detector import detector
from densitywatch.detector.member_table import all_members
from densitywatch.errors import DataError
from densitywatch.outlier_benchmark.auroc import FIGURES
from densitywatch.outlier_benchmark.benchmark import DECLARED, DETECTOR, benchmark
from densitywatch.outlier_benchmark.panel import fitted_to, foreign_digits, panel_sets
from densitywatch.outlier_benchmark.realised_fdr import realised_rates
from tests.marks import marks
from tests.small_project import bars, make_project

ROOT = Path(__file__).parents[2]
PANEL = {"mnist", "hflip", "vflip", "rot90", "invert", "uniform_noise", "constant"}


@pytest.fixture(scope="module")
@marks("slow")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("benchmark")
    params = make_project(root, ROOT / "params.yaml")
    detector.calibrate(params, root)
    return root, benchmark(params, root)


def test_the_metrics_hold_each_figure_by_panel_member_and_the_worst_of_them(
    measured: tuple[Path, dict[str, Any]],
) -> None:
    root, metrics = measured
    assert json.loads((root / "metrics" / "outliers.json").read_text()) == metrics
    for figure in FIGURES:
        worst = "max" if figure == "fpr_at_95_tpr" else "min"
        assert set(metrics[figure]) == PANEL | {worst}
        values = [metrics[figure][member] for member in PANEL]
        assert metrics[figure][worst] == (max(values) if worst == "max" else min(values))
    assert metrics["auroc"]["uniform_noise"] == 1.0
    assert set(metrics["auroc_declared"]) == PANEL | {"min"}
    assert {"held_out_auroc_detector", "held_out_auroc_pixel_mixture"} <= set(metrics)


def test_every_score_has_a_row(measured: tuple[Path, dict[str, Any]]) -> None:
    with (measured[0] / "reports" / "outliers" / "auroc.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["score"] for row in rows[:2]] == [DETECTOR, DECLARED]
    assert {row["score"] for row in rows[2:]} == set(all_members())
    assert set(rows[0]) == PANEL | {"score", "min"}


def test_the_detector_is_measured_without_each_of_its_members(measured: tuple[Path, dict[str, Any]]) -> None:
    root, metrics = measured
    with (root / "reports" / "outliers" / "ablation.csv").open() as file:
        rows = list(csv.DictReader(file))
    members = detector.load(root / "models" / "detector").facts["members"]
    assert [row.pop("left out") for row in rows] == ["nothing", *members]
    assert {name: float(value) for name, value in rows[0].items()} == pytest.approx(metrics["auroc"], abs=1e-3)


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
    from densitywatch.params import load_params
    from tests.small_project import with_detector

    return with_detector(load_params(ROOT / "params.yaml"))


def test_the_panel_is_what_it_says() -> None:
    test, _ = bars(5, 0)
    sets = panel_sets(test, test[:3], seed=0)
    assert set(sets) == PANEL
    assert (sets["hflip"] == test[..., ::-1]).all()
    assert (sets["vflip"] == test[..., ::-1, :]).all()
    assert (sets["rot90"][:, 0] == np.rot90(test[:, 0], 1, (1, 2))).all()
    assert (sets["invert"].astype(int) + test == 255).all()
    assert (np.ptp(sets["constant"], axis=(1, 2, 3)) == 0).all()
    assert len(np.unique(sets["uniform_noise"])) > 200


def test_digits_are_brought_to_the_size_and_the_colours_of_the_dataset() -> None:
    digits = np.random.default_rng(0).integers(0, 256, (2, 1, 28, 28), dtype=np.uint8)
    assert fitted_to(digits, 32, 3).shape == (2, 3, 32, 32)
    assert fitted_to(fitted_to(digits, 28, 3), 28, 1).shape == (2, 1, 28, 28)
    assert (fitted_to(digits, 28, 1) == digits).all()


def test_missing_digits_are_one_sentence(measured: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    info = read_info(measured[0] / "data" / "prepared")
    with pytest.raises(DataError, match="dvc repro fetch_panel"):
        foreign_digits(tmp_path, info, 5)
    (tmp_path / "data" / "panel").mkdir(parents=True)
    (tmp_path / "data" / "panel" / "mnist.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match="not a whole array"):
        foreign_digits(tmp_path, info, 5)


def test_the_realised_rate_is_that_of_the_promise_and_conditional_p_values_stay_below_it() -> None:
    rng = np.random.default_rng(0)
    rates = realised_rates(rng.normal(size=3000), rng.normal(size=200) + 6, calibration_size=2000, target=0.1, seed=0)
    for share, rate in rates.items():
        assert 0.07 < rate["false_discovery_rate"] < (1 - share) * 0.1 + 0.01  # no more than the normal share of 0.1
        assert rate["power"] > 0.9
        assert rate["conditional_false_discovery_rate"] <= rate["false_discovery_rate"]


def test_only_the_benchmark_and_the_demonstration_batch_depend_on_the_panel() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    reads = {
        name
        for name, stage in stages.items()
        if any(str(dep).startswith("data/panel") for dep in stage.get("do", stage).get("deps", []))
    }
    assert reads == {"benchmark", "demo_batch"}
    assert "data/panel" in stages["fetch_panel"]["outs"]
    made_of_it = [out for name in ("benchmark", "demo_batch") for out in stages[name]["outs"]]
    for name, stage in stages.items():
        if name not in {"report"}:  # the page shows the benchmark's figures; nothing is fitted on a page
            assert not set(made_of_it) & set(map(str, stage.get("do", stage).get("deps", []))), name


def test_no_other_code_names_the_panels_folder_or_imports_the_panel() -> None:
    allowed = {"data/fetch.py", "data/demo_batch.py", "outlier_benchmark/panel.py"}
    source = ROOT / "src" / "densitywatch"
    for file in source.rglob("*.py"):
        name = file.relative_to(source).as_posix()
        tree = ast.parse(file.read_text(encoding="utf-8"))
        docstrings = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if _has_docstring(node)}
        texts = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        if name not in allowed:
            assert not {text for text in texts - docstrings if text == "panel" or "data/panel" in text}, name
            assert "mnist.npy" not in texts, name
        imports = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        } | {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        if name != "outlier_benchmark/benchmark.py":
            assert not {
                i for i in imports if i.endswith("outlier_benchmark.panel") or i in {"panel_sets", "foreign_digits"}
            }, name


def test_fitting_reads_train_and_validation_only_and_p_values_calibration_only() -> None:
    reading = {
        path: {
            node.args[1].value
            for node in ast.walk(ast.parse((ROOT / "src" / "densitywatch" / path).read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "open_split"
            and isinstance(node.args[1], ast.Constant)
        }
        for path in ("detector/detector.py", "outlier_benchmark/benchmark.py")
    }
    assert reading["detector/detector.py"] == {"train", "validation", "calibration"}
    assert reading["outlier_benchmark/benchmark.py"] == {"test"}


def _has_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
