"""Calibration images that were renewed after a drift: test images of before do not rank fairly among them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densitywatch.data.accepted import SOURCE
from densitywatch.data.dataset import DatasetInfo
from densitywatch.detector.calibrate import calibrate
from densitywatch.outlier_benchmark.benchmark import benchmark, images_of_a_kind
from densitywatch.outlier_benchmark.renewed import ACCEPTED, WHY, is_renewed
from densitywatch.params import load_params
from tests.small_project import make_project, with_detector

ROOT = Path(__file__).parents[2]
RANKED = ("power_at", "false_alarm", "false_discovery", "realised_at", "no_class", "pooled", "stream_")


def write_manifest(prepared: Path, **paths: list[str]) -> None:
    rows = [{"path": path, "split": split} for split, of_split in paths.items() for path in of_split]
    pq.write_table(pa.Table.from_pylist(rows), prepared / "manifest.parquet")


def test_calibration_images_are_renewed_where_all_of_them_and_not_the_test_images_were_accepted(tmp_path: Path) -> None:
    assert f"{SOURCE}/" == ACCEPTED
    assert not is_renewed(tmp_path), "without a manifest"
    new, old = ["accepted/monday/1.png", "accepted/monday/2.png"], ["1.png", "cat/2.png"]
    for calibration, test, renewed in (
        (new, old, True),
        (old, old, False),
        ([*new, *old], old, False),
        (new, new, False),
    ):
        write_manifest(tmp_path, train=[*new, *old], calibration=calibration, test=test)
        assert is_renewed(tmp_path) is renewed


def test_after_a_renewal_no_figure_ranks_test_images_among_calibration_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = make_project(tmp_path, ROOT / "params.yaml", panel="own", folds=0, members=("composition",))
    write_manifest(tmp_path / "data/prepared", calibration=["accepted/monday/1.png"], test=["1.png"])
    calibrate(params, tmp_path)
    metrics = benchmark(params, tmp_path)
    assert "auroc" in metrics
    assert [key for key in metrics if key.startswith(RANKED) or "outliers" in key] == []
    assert WHY in capsys.readouterr().err
    folder = tmp_path / "reports/outliers"
    figures: list[dict[str, Any]] = json.loads((folder / "figures.json").read_text())
    assert {figure["file"] for figure in figures} == {"auroc.csv", "detector.csv", "kinds.png"}
    assert {file.name for file in folder.iterdir()} >= {figure["file"] for figure in figures}
    assert WHY in figures[0]["caption"], "the page says so too"
    with (folder / "auroc.csv").open() as file:
        assert len(list(csv.DictReader(file))) > 1


def test_large_pictures_shrink_the_panel_and_the_job_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    params = with_detector(load_params(ROOT / "params.yaml"), panel_images=1000)

    def images(size: int, channels: int) -> int:
        info = DatasetInfo("x", size, channels, (), "", {}, {})
        return images_of_a_kind(params, info, 900)

    assert images(28, 1) == 900
    assert capsys.readouterr().err == ""
    assert images(1024, 3) == 26
    assert "26 images of each kind in place of 900" in capsys.readouterr().err
