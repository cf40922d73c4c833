"""The gate's measurements and decisions, with tiny real models."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from densitywatch.detector.calibrate import calibrate
from densitywatch.evaluation.measures import sample_quality
from densitywatch.params import Params
from densitywatch.registry.gate import Measurement, cut_and_paste, gate, judge
from tests.registry.registry_project import write_model


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_candidate_without_a_finite_figure_is_rejected(value: float) -> None:
    assert not judge(Measurement("bits/dim", value), None, 0.0).passed
    assert not judge(Measurement("bits/dim", value), Measurement("bits/dim", 3.0), 1e9).passed


def test_a_champion_without_a_finite_figure_rejects_every_candidate() -> None:
    decision = judge(Measurement("bits/dim", 2.0), Measurement("bits/dim", math.nan), 0.0)
    assert not decision.passed
    assert "promote --afresh" in decision.reason


def test_as_good_passes_and_worse_passes_within_the_tolerance_only() -> None:
    champion = Measurement("bits/dim", 3.0)
    assert judge(Measurement("bits/dim", 3.0), champion, 0.0).passed
    assert not judge(Measurement("bits/dim", 3.0001), champion, 0.0).passed
    assert judge(Measurement("bits/dim", 3.02), champion, 0.01).passed
    assert not judge(Measurement("bits/dim", 3.04), champion, 0.01).passed
    # the tolerance of a negative figure lies above it as well
    assert judge(Measurement("kid", -0.09), Measurement("kid", -0.1), 0.2).passed


def test_figures_of_different_measures_are_not_compared() -> None:
    assert not judge(Measurement("ELBO bits/dim", 2.0), Measurement("bits/dim", 3.0), 0.0).passed


def test_the_gate_measures_both_now_and_rejects_what_cannot_be_measured(params: Params, root: Path) -> None:
    good = write_model(root, "gate_good", steps=40)
    raw = write_model(root, "gate_raw")
    broken = write_model(root, "gate_nan", spoil=math.nan)
    gone = root / "models" / "gate_gone"
    better = gate("x", good, raw, params, root)
    assert better.passed
    assert better.candidate is not None
    assert better.champion is not None
    assert better.candidate.value < better.champion.value
    worse = gate("x", raw, good, params, root)
    assert not worse.passed
    assert "worse than the champion's" in worse.reason
    assert "no finite number" in gate("x", broken, good, params, root).reason
    assert "cannot be measured" in gate("x", gone, good, params, root).reason
    assert not gate("x", good, gone, params, root).passed


def test_each_kind_of_model_has_its_measure(params: Params, root: Path) -> None:
    vae = gate("x", write_model(root, "gate_vae", kind="vae"), None, params, root)
    autoencoder = gate("x", write_model(root, "gate_ae", kind="autoencoder"), None, params, root)
    assert vae.candidate is not None
    assert vae.candidate.measure == "ELBO bits/dim"
    assert autoencoder.candidate is not None
    assert autoencoder.candidate.measure == "reconstruction error"
    assert 0 < autoencoder.candidate.value < 1


def test_a_model_that_only_draws_samples_needs_the_feature_network_to_be_judged(params: Params, root: Path) -> None:
    decision = gate("x", write_model(root, "gate_gan", kind="gan"), None, params, root)
    assert not decision.passed
    assert "models/classifier" in decision.reason


def test_a_model_that_only_draws_samples_is_judged_by_their_distance(
    params: Params, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_quality, "quality_figure", lambda model, params, root: 12.5)
    decision = gate("x", write_model(root, "gate_gan", kind="gan"), None, params, root)
    assert decision.candidate == Measurement("FID of samples", 12.5)


def test_a_bound_is_measured_with_the_same_draws_each_time(params: Params, root: Path) -> None:
    folder = write_model(root, "gate_vae", kind="vae")
    decision = gate("x", folder, folder, params, root)
    assert decision.passed
    assert decision.candidate == decision.champion


def test_a_model_of_another_image_size_is_rejected_with_both_sizes(params: Params, root: Path, tmp_path: Path) -> None:
    folder = write_model(root, "gate_size")
    prepared = tmp_path / "data" / "prepared"
    shutil.copytree(root / "data" / "prepared", prepared)
    np.save(prepared / "validation.npy", np.zeros((64, 1, 16, 16), dtype=np.uint8))
    reason = gate("x", folder, None, params, tmp_path).reason
    assert "8 x 8 pixels in grey and the prepared dataset has 16 x 16" in reason


def test_a_detector_whose_p_values_do_not_hold_is_rejected(params: Params, root: Path, tmp_path: Path) -> None:
    write_model(root, "pixelcnn", steps=40)
    folder = calibrate(params, root)
    prepared = tmp_path / "data" / "prepared"
    shutil.copytree(root / "data" / "prepared", prepared)
    assert gate("detector", folder, None, params, tmp_path).passed
    np.save(prepared / "validation.npy", 255 - np.load(prepared / "validation.npy"))
    decision = gate("detector", folder, None, params, tmp_path)
    assert not decision.passed
    assert "p-values do not hold on today's validation images" in decision.reason


def test_cut_and_paste_takes_a_rectangle_of_the_next_image() -> None:
    plain = np.stack([np.full((1, 8, 8), value, dtype=np.uint8) for value in (10, 20)])
    pasted = cut_and_paste(plain, np.random.default_rng(0))
    assert [int((image == other).sum()) for image, other in zip(pasted, (20, 10), strict=True)] == [16, 16]
    assert plain[0].max() == 10
