"""`densitywatch score` and `review` as a person types them: what each option does to exit codes, files and figures."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from densitywatch import cli
from densitywatch.detector.calibrate import calibrate
from tests.registry.registry_project import SIZE, images, tiny_params, write_data, write_model


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Path:
    """A calibrated detector, and a batch of five images that belong and three of noise."""
    root = tmp_path_factory.mktemp("verbs")
    write_data(root)
    write_model(root, "pixelcnn", steps=40)
    calibrate(tiny_params(), root)
    (root / "params.yaml").write_bytes((project_root / "params.yaml").read_bytes())
    (root / "batch").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (3, 1, SIZE, SIZE), dtype=np.uint8)
    for number, image in enumerate(np.concatenate([images(5, 30), noise])):
        Image.fromarray(image[0]).save(root / "batch" / f"{number}.png")
    return root


@pytest.fixture
def typed(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Types a command in the project: the exit code and what was printed."""
    monkeypatch.chdir(project)

    def typed(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["densitywatch", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return typed


def summary(project: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((project / name / "summary.json").read_text()))


def test_a_batch_with_as_many_outliers_as_fail_on_names_exits_with_1_and_keeps_its_results(
    project: Path, typed: Any
) -> None:
    assert typed("score", "batch", "--out", "few", "--fail-on", "4")[0] == 0
    assert (summary(project, "few")["files"], summary(project, "few")["outliers"]) == (8, 3)
    code, _, err = typed("score", "batch", "--out", "many", "--fail-on", "3")
    assert (code, err.splitlines()[-1]) == (
        1, "densitywatch: 3 of 8 images are outliers (--fail-on 3); see many"
    )  # fmt: skip
    assert summary(project, "many")["outliers"] == 3
    assert (project / "many" / "report.html").is_file()


@pytest.mark.parametrize(
    ("options", "files"),
    [(["--fdr", "0.001"], 8), (["--strict"], 8), (["--limit", "5"], 5)],
)
def test_a_lower_rate_a_strict_one_or_fewer_files_flag_fewer(
    project: Path, typed: Any, options: list[str], files: int
) -> None:
    out = options[0].strip("-")
    assert typed("score", "batch", "--out", out, "--fail-on", "3", *options)[0] == 0
    found = summary(project, out)
    assert (found["files"], found["outliers"]) == (files, 0)


def test_verdicts_go_out_as_a_table_come_back_and_sort_the_originals(project: Path, typed: Any) -> None:
    assert typed("score", "batch", "--out", "data/outliers/batch")[0] == 0
    code, out, _ = typed("review", "batch", "--to-csv", "verdicts.csv")
    assert (code, out) == (0, "verdicts.csv: 3 images to judge\n")
    with (project / "verdicts.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, verdict in zip(rows, ("outlier", "fine", "outlier"), strict=True):
        row["verdict"] = verdict
    with (project / "verdicts.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    code, out, _ = typed("review", "batch", "--from-csv", "verdicts.csv", "--collect", "reviewed")
    assert (code, out.splitlines()[0]) == (0, "verdicts taken: 3")
    copied = {path.relative_to(project / "reviewed").parts[0]: path for path in (project / "reviewed").glob("*/*")}
    assert set(copied) == {"outlier", "fine"}
    assert copied["fine"].read_bytes() in [(project / "batch" / f"{i}.png").read_bytes() for i in (5, 6, 7)]
    assert len(list((project / "reviewed" / "outlier").iterdir())) == 2
    code, out, _ = typed("review", "batch", "--at-random", "5", "--to-csv", "more.csv")
    assert (code, out.splitlines()[0]) == (0, "drawn at random: 5")
    with (project / "more.csv").open(newline="") as file:
        assert sum("at random" in row["chosen"] for row in csv.DictReader(file)) == 5
    assert typed("review", "batch", "--at-random", "0")[0] == 1


def test_results_go_to_an_address_as_well(project: Path, typed: Any) -> None:
    code, out, _ = typed("score", "batch", "--out", "memory://results/batch")
    here = project / "data/outliers/batch"
    assert (code, out.splitlines()[-1]) == (0, f"results: {here}, copied to memory://results/batch")
    store = fsspec.filesystem("memory")
    assert store.cat("/results/batch/scores.parquet") == (here / "scores.parquet").read_bytes()


def test_workers_without_ray_are_refused(typed: Any) -> None:
    code, _, err = typed("score", "batch", "--workers", "2")
    assert (code, err.splitlines()[-1]) == (
        2,
        "densitywatch: workers are for the engine ray; add --engine ray or leave out --workers",
    )
