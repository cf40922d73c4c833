"""The batch job with a detector as `calibrate` writes it: small, but real in every part."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from densitywatch.batches.score_batch import score_source
from densitywatch.batches.scorer import load_detector
from densitywatch.detector.calibrate import calibrate
from densitywatch.params import Params
from tests.batches.conftest import PROJECT
from tests.small_project import make_project

Project = tuple[Path, Params]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A calibrated project and a batch of test images, foreign digits and a broken file."""
    root = tmp_path_factory.mktemp("project")
    params = make_project(root, PROJECT / "params.yaml")
    calibrate(params, root)
    batch = root / "data" / "inbox" / "demo"
    batch.mkdir(parents=True)
    for i, image in enumerate(np.load(root / "data/prepared/test.npy")[:60]):
        Image.fromarray(image[0]).save(batch / f"test_{i:02d}.png")
    for i, image in enumerate(np.load(root / "data/panel/mnist.npy")[:8]):
        Image.fromarray(image[0]).save(batch / f"foreign_{i}.png")
    (batch / "text.png").write_text("no image")
    return root, params


def test_foreign_images_are_flagged_with_maps_neighbours_and_reasons(project: Project) -> None:
    root, params = project
    summary = score_source("data/inbox/demo", params, root)
    assert (summary["files"], summary["scored"], summary["quarantined"]) == (69, 68, 1)
    out = root / "data" / "outliers" / "demo"
    table = pd.read_parquet(out / "scores.parquet")
    flagged = table[table.outlier].path
    assert flagged.str.startswith("foreign").sum() == 8
    assert len(flagged) <= 12
    rows = pq.read_table(out / "gallery.parquet").to_pylist()
    for row in rows:
        assert row["map"] is not None
        assert len(row["neighbours"]) == 3
        assert row["why"]
    assert "28 x 28 pixels to 14 x 14" in (out / "report.html").read_text()


def test_scoring_again_elsewhere_gives_the_same_bytes(project: Project, tmp_path: Path) -> None:
    root, params = project
    score_source("data/inbox/demo", params, root)
    score_source("data/inbox/demo", params, root, tmp_path / "out")
    for name in ("scores.parquet", "summary.json", "gallery.parquet", "report.html"):
        assert (tmp_path / "out" / name).read_bytes() == (root / "data/outliers/demo" / name).read_bytes()


def test_a_detector_has_one_digest_whether_its_models_lie_inside_or_beside(project: Project, tmp_path: Path) -> None:
    root, params = project
    _, beside = load_detector(None, params, root)
    packed = tmp_path / "packed"
    shutil.copytree(root / "models" / "detector", packed)
    for name in json.loads((packed / "detector.json").read_text())["models"]:
        shutil.copytree(root / "models" / name, packed / "members" / name)
    _, inside = load_detector(packed, params, root)
    assert inside == beside
    facts = json.loads((packed / "detector.json").read_text())
    (packed / "detector.json").write_text(json.dumps(facts | {"false_alarm_rate": 0.02}))
    assert load_detector(packed, params, root)[1] != beside
