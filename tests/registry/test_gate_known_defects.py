"""gate.known_defects: a detector that has lost a kind of the user's own defects is refused, whatever else it gained."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from densitywatch.arrays import Pixels
from densitywatch.data.dataset import open_split
from densitywatch.detector import detector
from densitywatch.params import Params
from densitywatch.registry.gate import compare_known, gate
from densitywatch.registry.known_defects import measure_known_defects
from densitywatch.registry.resampling import Known, Measurement, bootstrap_counts, one_figure, wrong_pairs
from tests.registry.test_gate import without_floor

GOOD, BAD = 120, 40
RUNS = 300


def known(seed: int, shift: dict[str, float]) -> Known:
    """Images as hard for every detector, scored with noise of this one's own."""
    rng, hard = np.random.default_rng(seed), np.random.default_rng(0)
    good = hard.normal(size=GOOD) + 0.3 * rng.normal(size=GOOD)
    kinds, start = {}, GOOD
    for kind, by in shift.items():
        bad = hard.normal(size=BAD) + 0.3 * rng.normal(size=BAD) + by
        figures = wrong_pairs(good, bad, slice(start, start + BAD), slice(GOOD))
        start += BAD
        kinds[kind] = Measurement(kind, one_figure(figures, GOOD + 2 * BAD), "detector", figures)
    counts = np.concatenate([bootstrap_counts(np.arange(n), n, 200) for n in (GOOD, BAD, BAD)], axis=1)
    names = tuple(str(number) for number in range(GOOD + 2 * BAD))
    return Known(names, kinds, counts, dict.fromkeys(shift, BAD))


def measured(one: Known | None) -> Measurement:
    return Measurement("error on defects", 0.1, "detector", known=one)


def test_a_kind_that_is_lost_is_named(params: Params) -> None:
    champion, candidate = known(1, {"dent": 1.5, "scratch": 1.5}), known(2, {"dent": 3.0, "scratch": 0.2})
    kept, words, figures = compare_known(measured(candidate), measured(champion), params.gate)
    assert not kept
    assert words.startswith("on known defects of the kind scratch its error is 0.")
    assert "dent" not in words
    assert figures["known_error.scratch"] == candidate.kinds["scratch"].value
    assert figures["known_champion_error.dent"] == champion.kinds["dent"].value
    kept, words, _ = compare_known(measured(champion), measured(candidate), params.gate)
    assert not kept, "and the other way round it is the dent"
    assert "of the kind dent" in words


def test_equal_detectors_are_seldom_refused(params: Params) -> None:
    even = {"dent": 1.0, "scratch": 1.0}
    no_margin = params.gate.model_copy(update={"margin": params.gate.margin.model_copy(update={"detector": 0.0})})
    champion = measured(known(1, even))
    refused = sum(not compare_known(measured(known(2 + run, even)), champion, no_margin)[0] for run in range(RUNS))
    # one champion for all runs: it may be a lucky one, and then more are refused than the rule says of a pair
    pairs = sum(
        not compare_known(measured(known(1000 + run, even)), measured(known(5000 + run, even)), no_margin)[0]
        for run in range(RUNS)
    )
    assert refused < RUNS
    assert pairs <= 0.05 * RUNS + 3 * math.sqrt(RUNS * 0.05 * 0.95)


def test_figures_of_other_images_are_not_compared(params: Params) -> None:
    one = known(1, {"dent": 1.0, "scratch": 1.0})
    for other in (None, replace(one, names=one.names[1:])):
        kept, words, _ = compare_known(measured(one), measured(other), params.gate)
        assert not kept
        assert "could not read the same images" in words
    assert compare_known(measured(None), measured(None), params.gate) == (True, "", {})


def test_the_error_of_two_sets_of_images_is_that_of_sklearn() -> None:
    rng = np.random.default_rng(3)
    good, bad = rng.integers(0, 9, 30).astype(float), rng.integers(3, 12, 20).astype(float)
    figures = wrong_pairs(good, bad, slice(30, 50), slice(30))
    counts = np.concatenate([bootstrap_counts(np.arange(n), 5, 20) for n in (30, 20)], axis=1)
    for taken, figure in zip(counts, figures(counts), strict=True):
        truth = np.repeat([0, 1], [30, 20])
        assert figure == pytest.approx(1 - roc_auc_score(truth, np.append(good, bad), sample_weight=taken))


@pytest.fixture
def sorted_folder(calibrated: Path, tmp_path: Path) -> Path:
    images = np.array(open_split(calibrated / "data/prepared", "train").images[:24])
    for kind, pixels in {"good": images[:12], "negative": 255 - images[12:], "noise": _noise(images[:12])}.items():
        (tmp_path / "sorted" / kind).mkdir(parents=True)
        for number, one in enumerate(pixels):
            Image.fromarray(one[0]).save(tmp_path / "sorted" / kind / f"{number:03d}.png")
    (tmp_path / "sorted" / "noise" / "broken.png").write_bytes(b"no picture")
    return tmp_path / "sorted"


def _noise(images: Pixels) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, images.shape).astype(np.uint8)


def with_known(params: Params, address: str) -> Params:
    return params.model_copy(update={"gate": params.gate.model_copy(update={"known_defects": address})})


def test_a_sorted_folder_is_read_and_scored(params: Params, calibrated: Path, sorted_folder: Path) -> None:
    found = measure_known_defects(calibrated / "models/detector", with_known(params, str(sorted_folder)), calibrated)
    assert len(found.names) == 36
    assert found.independent == {"negative": 12, "noise": 12}
    loaded = detector.load(calibrated / "models/detector")
    scores = {
        kind: np.concatenate(
            [
                loaded.score(np.asarray(Image.open(file))[None, None]).score
                for file in sorted((sorted_folder / kind).glob("0*.png"))
            ]
        )
        for kind in ("good", "noise")
    }
    wrong = 1 - roc_auc_score(np.repeat([0, 1], 12), np.concatenate([scores["good"], scores["noise"]]))
    assert found.kinds["noise"].value == pytest.approx(wrong)


def test_the_gate_asks_and_says_so(params: Params, calibrated: Path, sorted_folder: Path) -> None:
    folder, asked = calibrated / "models/detector", with_known(without_floor(params), str(sorted_folder))
    passed = gate("detector", folder, folder, asked, calibrated)
    assert passed.passed, passed
    assert "no kind of the 36 sorted images in gate.known_defects has surely gone worse" in str(passed)
    assert "known_error.noise" in passed.figures
    assert gate("detector", folder, None, asked, calibrated).passed, "there is nothing to compare with"


@pytest.mark.parametrize(
    ("address", "words"),
    [("nowhere", "no such folder"), ("s3://bucket/sorted", "a folder on this machine is asked for")],
)
def test_a_folder_that_cannot_be_read_passes_nothing(
    params: Params, calibrated: Path, address: str, words: str
) -> None:
    folder = calibrated / "models/detector"
    decision = gate("detector", folder, folder, with_known(without_floor(params), address), calibrated)
    assert not decision.passed
    assert str(decision).startswith("rejected: gate.known_defects: ")
    assert words in str(decision)
