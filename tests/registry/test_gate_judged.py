"""After a drift a detector that was calibrated on a judged draw passes the gate, and one that was not is refused."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densitywatch.data.accepted import schema
from densitywatch.data.dataset import open_split, read_facts
from densitywatch.data.encoding import png
from densitywatch.data.fetch import fetch
from densitywatch.data.look import ACCEPTED
from densitywatch.data.prepare import prepare
from densitywatch.detector import detector
from densitywatch.detector.calibrate import calibrate
from densitywatch.params import GateParams, Params, load_params
from densitywatch.registry.gate import gate, gate_images, judged_images
from tests.registry.registry_project import PARAMS, images, write_model

DRAWN = 240


def moved(count: int, seed: int) -> np.ndarray:
    """Images of the stream after its camera became noisy."""
    noise = np.random.default_rng(seed).integers(-25, 26, (count, 1, 8, 8))
    return (images(count, seed).astype(int) + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def drifted(tmp_path_factory: pytest.TempPathFactory, params: Params) -> tuple[Path, Params, Path]:
    """A project whose stream has moved, its params, and its champion of before; 240 judged images are accepted."""
    root = tmp_path_factory.mktemp("drifted")
    (root / "mine").mkdir()
    for number, image in enumerate(images(800, seed=7)):
        (root / "mine" / f"{number:04d}.png").write_bytes(png(image))
    data = params.data.model_copy(update={"source": "folder", "address": "mine", "calibration": 0.2, "gate": 0.2})
    rules = GateParams.model_validate({**params.gate.model_dump(), "images": 2000, "floor": True})
    params = params.model_copy(update={"data": data, "gate": rules})
    fetch(params, root)
    prepare(params, root)
    write_model(root, "pixelcnn", steps=40)
    before = root / "champion" / "detector"
    shutil.copytree(calibrate(params, root), before)
    shutil.copytree(root / "models" / "pixelcnn", before.parent / "pixelcnn")
    rows = [
        {"path": f"{number}.png", "sha256": hashlib.sha256(data).hexdigest(), "label": None, "fair": True, "drift": 1}
        | {"alarm": "monday", "bytes": data}
        for number, data in enumerate(map(png, moved(DRAWN, seed=8)))
    ]
    (root / ACCEPTED).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema()), root / ACCEPTED / "monday.parquet")
    prepare(params, root)
    return root, params, before


@pytest.fixture(scope="module")
def renewed(drifted: tuple[Path, Params, Path]) -> Path:
    root, params, _ = drifted
    return calibrate(params, root)


def test_a_detector_calibrated_on_the_judged_draw_passes_with_the_default_margins(
    drifted: tuple[Path, Params, Path], renewed: Path
) -> None:
    root, params, champion = drifted
    assert params.gate.margin == load_params(PARAMS).gate.margin
    decision = gate("detector", renewed, champion, params, root)
    assert decision.passed, decision
    counts = read_facts(root / "data/prepared").judged
    assert sum(counts.values()) == DRAWN
    assert decision.candidate is not None
    assert decision.candidate.missed is not None
    assert decision.candidate.missed.calibration == counts["calibration"]


def test_its_p_values_hold_on_new_images_of_the_moved_stream_and_those_of_the_champion_do_not(
    drifted: tuple[Path, Params, Path], renewed: Path
) -> None:
    _, _, champion = drifted
    new = moved(1000, seed=9)
    assert (detector.load(champion).score(new).p_value <= 0.2).mean() > 0.9
    # of about 180 calibration images the share is Beta(36, 145) for a given set: 0.2 with a deviation of 0.03
    assert (detector.load(renewed).score(new).p_value <= 0.2).mean() == pytest.approx(0.2, abs=0.1)


def test_a_detector_with_p_values_of_the_old_stream_is_refused(drifted: tuple[Path, Params, Path]) -> None:
    root, params, champion = drifted
    decision = gate("detector", champion, champion, params, root)
    assert not decision.passed
    assert "its p-values do not hold on the gate's judged images" in decision.reason


def test_a_detector_whose_calibration_images_lack_the_strangest_ones_is_refused(
    drifted: tuple[Path, Params, Path], renewed: Path, tmp_path: Path
) -> None:
    root, params, champion = drifted
    spoilt = tmp_path / "spoilt"
    shutil.copytree(root / "data" / "prepared", spoilt / "data" / "prepared")
    shutil.copytree(root / "models" / "pixelcnn", spoilt / "models" / "pixelcnn")
    prepared = spoilt / "data" / "prepared"
    calibration = np.load(prepared / "calibration.npy")
    usual = np.argsort(detector.load(renewed).score(calibration).score)[: len(calibration) // 2]
    np.save(prepared / "calibration.npy", calibration[usual])
    np.save(prepared / "calibration_labels.npy", np.full(len(usual), -1))
    decision = gate("detector", calibrate(params, spoilt), champion, params, root)
    assert not decision.passed
    assert "its p-values do not hold on the gate's judged images" in decision.reason


def test_what_is_compared_for_its_ranking_are_the_gates_images_of_before(
    drifted: tuple[Path, Params, Path], tmp_path: Path
) -> None:
    root, params, _ = drifted
    shutil.copytree(root / "data" / "raw", tmp_path / "data" / "raw")
    prepare(params, tmp_path)
    before, after = gate_images(params, tmp_path)[0], gate_images(params, root)[0]
    assert np.array_equal(before, after)
    assert len(before) == 160
    assert judged_images(params, tmp_path) is None
    judged = judged_images(params, root)
    assert judged is not None
    assert len(judged.images) == read_facts(root / "data/prepared").judged["gate"]
    assert len(judged.images) + len(judged.calibration) == DRAWN
    assert len(open_split(root / "data/prepared", "gate")) == len(before) + len(judged.images)
    assert judged.images.std() != pytest.approx(before.std(), abs=0.1)
