"""The gate's measurements and decisions, with tiny real models."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from densitywatch.detector.calibrate import calibrate
from densitywatch.errors import DataError, DensitywatchError
from densitywatch.evaluation.measures.feature_network import train_classifier
from densitywatch.params import GateMargin, GateParams, Params
from densitywatch.registry.floors import PRIOR, independent_bits, independent_pixels
from densitywatch.registry.gate import Decision, gate, judge
from densitywatch.registry.measuring import measure_samples
from densitywatch.registry.measuring_detectors import with_many_defects
from densitywatch.registry.resampling import Measurement, bootstrap_counts, mean_figures, wrong_pairs
from tests.registry.registry_project import write_model


@pytest.fixture
def params(params: Params) -> Params:
    """With the floor, which the other tests of the registry leave out."""
    return params.model_copy(update={"gate": params.gate.model_copy(update={"floor": True})})


IMAGES = 400
COUNTS = bootstrap_counts(np.arange(IMAGES), 0)


def bits(mean: float, spread: float = 0.0, seed: int = 0) -> Measurement:
    """A density of which the gate has measured IMAGES values with exactly this mean."""
    noise = np.random.default_rng(seed).standard_normal(IMAGES)
    values = mean + spread * (noise - noise.mean())
    return Measurement("bits/dim", float(values.mean()), "bits", mean_figures(values))


def compared(
    candidate: Measurement, champion: Measurement | None, rules: GateParams, floor: Measurement | None = None
) -> Decision:
    return judge(candidate, champion, rules, floor, COUNTS, IMAGES)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_candidate_without_a_finite_figure_is_rejected(value: float, params: Params) -> None:
    assert not compared(Measurement("bits/dim", value), None, params.gate).passed
    assert not compared(Measurement("bits/dim", value), Measurement("bits/dim", 3.0), params.gate).passed


def test_a_champion_without_a_finite_figure_rejects_every_candidate(params: Params) -> None:
    decision = compared(Measurement("bits/dim", 2.0), Measurement("bits/dim", math.nan), params.gate)
    assert not decision.passed
    assert "promote --afresh" in decision.reason


def test_where_chance_explains_nothing_the_margin_alone_decides(params: Params) -> None:
    champion, rules = bits(3.0), params.gate
    assert compared(bits(3.0), champion, rules).passed
    assert compared(bits(3.009), champion, rules).passed
    assert not compared(bits(3.011), champion, rules).passed


@pytest.mark.parametrize(
    ("kind", "champion", "within", "beyond"),
    [
        ("bits", 3.0, 3.029, 3.031),  # 0.03 bits/dim
        ("detector", 0.2, 0.239, 0.241),  # 0.04 AUROC
        ("error", 0.5, 0.549, 0.551),  # 10 % of the champion's
        ("samples", 50.0, 59.9, 60.1),  # 20 % of the champion's
    ],
)
def test_each_kind_has_its_margin(kind: str, champion: float, within: float, beyond: float, params: Params) -> None:
    margin = GateMargin(bits=0.03, detector=0.04, error=0.1, samples=0.2)
    rules = params.gate.model_copy(update={"margin": margin})
    for value, passes in ((within, True), (beyond, False)):
        decision = compared(Measurement("figure", value, kind), Measurement("figure", champion, kind), rules)
        assert decision.passed is passes, decision


def test_the_tolerance_widens_the_margin_by_a_share_of_the_champions_figure(params: Params) -> None:
    wider = params.gate.model_copy(update={"tolerance": 0.01})
    assert compared(bits(3.039), bits(3.0), wider).passed
    assert not compared(bits(3.041), bits(3.0), wider).passed
    # the tolerance of a negative figure lies above it as well
    alone = params.gate.model_copy(update={"tolerance": 0.2, "margin": GateMargin(bits=0.0)})
    assert compared(bits(-0.09), bits(-0.1), alone).passed
    assert not compared(bits(-0.07), bits(-0.1), alone).passed


def test_what_the_images_cannot_show_is_rejected_and_said(params: Params) -> None:
    # the difference has a standard error of 0.3 * sqrt(2) / sqrt(400) = 0.021, twice the margin of 0.01
    unsure = compared(bits(3.0, 0.3, seed=1), bits(3.0, 0.3, seed=2), params.gate)
    assert not unsure.passed
    assert "too uncertain" in unsure.reason
    better = compared(bits(2.9, 0.3, seed=1), bits(3.0, 0.3, seed=2), params.gate)
    assert better.passed
    assert "better than the champion's 3.0000" in better.reason
    equal = compared(bits(3.0, 0.02, seed=1), bits(3.0, 0.02, seed=2), params.gate)
    assert equal.passed
    assert "no evidence of a difference from the champion's" in equal.reason


def test_a_higher_confidence_asks_for_more(params: Params) -> None:
    new, old = bits(3.007, 0.02, seed=1), bits(3.0, 0.02, seed=2)
    assert compared(new, old, params.gate).passed
    assert not compared(new, old, params.gate.model_copy(update={"confidence": 0.999})).passed


def test_the_interval_is_the_t_interval_of_the_paired_differences(params: Params) -> None:
    new, old = bits(3.0, 0.3, seed=1), bits(3.1, 0.3, seed=2)
    figures = compared(new, old, params.gate).figures
    assert new.figures is not None
    assert old.figures is not None
    each = np.eye(IMAGES)
    error = (new.figures(each) - old.figures(each)).std(ddof=1) / math.sqrt(IMAGES)
    assert float(figures["at_most"]) == pytest.approx(-0.1 + 1.6487 * error, abs=0.15 * error)


def test_images_of_one_group_are_taken_or_left_together() -> None:
    counts = bootstrap_counts(np.array([0, 0, 7, 7, 7, 3]), 0, 200)
    assert (counts[:, 0] == counts[:, 1]).all()
    assert (counts[:, 2] == counts[:, 4]).all()
    assert (counts[:, 0] + counts[:, 2] + counts[:, 5] == 3).all()


@pytest.mark.parametrize("levels", [5, 10**9])  # with ties, and without
def test_wrong_pairs_are_those_counted_one_by_one(levels: int) -> None:
    rng = np.random.default_rng(0)
    normal, outlying = rng.integers(0, levels, (2, 12)).astype(float)
    counts = bootstrap_counts(np.arange(12), 0, 4)
    for row, found in zip(counts, wrong_pairs(normal, outlying)(counts), strict=True):
        pairs = [
            (a, b) for i, a in enumerate(normal) for j, b in enumerate(outlying) for _ in range(int(row[i] * row[j]))
        ]
        wrong = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs)
        assert found == pytest.approx(wrong / len(pairs))


def test_a_first_candidate_must_beat_the_floor(params: Params) -> None:
    floor = bits(4.0, 0.3, seed=3)
    assert not compared(bits(4.1, 0.3), None, params.gate, floor).passed
    assert "does not beat the floor" in compared(bits(3.999, 0.3), None, params.gate, floor).reason
    passed = compared(bits(3.0, 0.3), None, params.gate, floor)
    assert passed.passed
    assert "a trivial model has 4.0000" in passed.reason
    assert passed.figures["floor"] == pytest.approx(4.0)


def test_figures_of_different_measures_are_not_compared(params: Params) -> None:
    assert not compared(Measurement("ELBO bits/dim", 2.0), Measurement("bits/dim", 3.0), params.gate).passed


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
    worse = gate("x", raw, good, without_floor(params), root)
    assert not worse.passed
    assert "worse than the champion's" in worse.reason
    assert "no finite number" in gate("x", broken, good, params, root).reason
    assert "cannot be measured" in gate("x", gone, good, params, root).reason
    assert not gate("x", good, gone, params, root).passed


def without_floor(params: Params) -> Params:
    return params.model_copy(update={"gate": params.gate.model_copy(update={"floor": False})})


def test_a_density_that_has_learned_nothing_is_below_the_floor_of_independent_pixels(
    params: Params, root: Path
) -> None:
    raw = write_model(root, "gate_raw")
    decision = gate("x", raw, None, params, root)
    assert not decision.passed
    assert "does not beat the floor" in decision.reason
    assert gate("x", raw, None, without_floor(params), root).passed
    assert gate("x", write_model(root, "gate_good", steps=40), None, params, root).passed


def test_too_few_images_promote_nothing(params: Params, root: Path) -> None:
    few = params.model_copy(update={"gate": params.gate.model_copy(update={"least_images": 65})})
    reason = gate("x", write_model(root, "gate_good", steps=40), None, few, root).reason
    assert reason.startswith(
        "rejected: there are 64 images to compare on, each group counted once, and gate.least_images asks for 65"
    )


def test_images_of_one_group_count_as_one(params: Params, root: Path, tmp_path: Path) -> None:
    prepared = tmp_path / "data" / "prepared"
    shutil.copytree(root / "data" / "prepared", prepared)
    np.save(prepared / "gate_groups.npy", np.arange(64) // 16)
    reason = gate("x", write_model(root, "gate_good", steps=40), None, params, tmp_path).reason
    assert reason.startswith("rejected: there are 4 images to compare on, each group counted once")


def test_without_the_gates_images_the_error_says_what_to_run(params: Params, root: Path, tmp_path: Path) -> None:
    prepared = tmp_path / "data" / "prepared"
    shutil.copytree(root / "data" / "prepared", prepared)
    (prepared / "gate.npy").unlink()
    with pytest.raises(DataError, match=r"gate\.npy: no prepared images here; run `dvc repro prepare`"):
        gate("x", write_model(root, "gate_good", steps=40), None, params, tmp_path)


def test_each_kind_of_model_has_its_measure(params: Params, root: Path) -> None:
    params = without_floor(params)
    vae = gate("x", write_model(root, "gate_vae", kind="vae"), None, params, root)
    autoencoder = gate("x", write_model(root, "gate_ae", kind="autoencoder"), None, params, root)
    assert vae.candidate is not None
    assert vae.candidate.measure == "ELBO bits/dim"
    assert autoencoder.candidate is not None
    assert autoencoder.candidate.measure == "reconstruction error"
    assert 0 < autoencoder.candidate.value < 1


def test_the_floor_of_densities_is_a_distribution_that_gives_every_value_some_probability() -> None:
    train = np.random.default_rng(0).integers(90, 110, (50, 1, 2, 2)).astype(np.uint8)
    values = np.arange(256, dtype=np.uint8)
    images = np.full((256, 1, 2, 2), 100, dtype=np.uint8)
    images[:, 0, 1, 0] = values  # every value of one pixel, the others fixed
    bits = independent_bits(train, images) * 4
    fixed = independent_bits(train, images[:1] * 0 + 100)[0] * 4
    alone = bits - bits[100]  # what this pixel adds, up to its own figure at 100
    assert np.isfinite(bits).all()
    assert bits[100] == pytest.approx(fixed)
    count = (train[:, 0, 1, 0] == 100).sum()
    pooled = (np.bincount(train.ravel(), minlength=256) + 1.0) / (train.size + 256)
    at_100 = (count + PRIOR * pooled[100]) / (50 + PRIOR)
    assert (2.0 ** (-alone) * at_100).sum() == pytest.approx(1.0)


def test_images_of_independent_pixels_keep_each_pixels_values_and_lose_what_ties_them() -> None:
    train = np.stack([np.full((1, 4, 4), value, dtype=np.uint8) for value in (10, 20)])
    train[:, :, 0, 0] += 100
    drawn = independent_pixels(train, 300, np.random.default_rng(0))
    assert set(np.unique(drawn[:, 0, 0, 0])) == {110, 120}
    assert set(np.unique(drawn[:, 0, 1:, 1:])) == {10, 20}
    assert abs(np.corrcoef(drawn[:, 0, 1, 1], drawn[:, 0, 2, 2])[0, 1]) < 0.2


def test_a_reconstructor_must_beat_the_mean_image(params: Params, root: Path) -> None:
    decision = gate("x", write_model(root, "gate_ae", kind="autoencoder"), None, params, root)
    assert not decision.passed
    assert "its reconstruction error of" in decision.reason


def test_a_model_that_only_draws_samples_needs_the_feature_network_to_be_judged(params: Params, root: Path) -> None:
    decision = gate("x", write_model(root, "gate_gan", kind="gan"), None, params, root)
    assert not decision.passed
    assert "models/classifier" in decision.reason


def test_a_model_that_only_draws_samples_is_judged_by_their_distance(
    params: Params, root: Path, tmp_path: Path
) -> None:
    shutil.copytree(root / "data" / "prepared", tmp_path / "data" / "prepared")
    training = params.classifier.training.model_copy(update={"steps": 20, "batch_size": 16, "warmup_steps": 2})
    params = params.model_copy(update={"classifier": params.classifier.model_copy(update={"training": training})})
    train_classifier(params, tmp_path)
    raw = write_model(tmp_path, "gate_gan", kind="gan")
    decision = gate("x", raw, raw, without_floor(params), tmp_path)
    assert decision.passed
    assert decision.candidate is not None
    assert decision.candidate.measure == "FID of samples"
    assert decision.candidate == decision.champion
    assert decision.figures["difference"] == 0.0
    # the same samples, drawn anew together: what is left of chance is that of the margin, 10 % of the champion's FID
    assert 0.0 < float(decision.figures["at_most"]) < float(decision.figures["margin"])

    prepared = tmp_path / "data" / "prepared"
    seen, train = (np.load(prepared / f"{name}.npy") for name in ("gate", "train"))
    noise = np.random.default_rng(0).integers(0, 256, seen.shape, dtype=np.uint8)
    real, rough = (measure_samples(Drawn(images), seen, params, tmp_path) for images in (train, noise))
    rules, counts = params.gate, bootstrap_counts(np.arange(len(seen)), 0)
    assert judge(real, rough, rules, None, counts, len(seen)).passed
    assert not judge(rough, real, rules, None, counts, len(seen)).passed
    assert rough.trivial is not None
    below = judge(rough, None, rules, rough.trivial(), counts, len(seen))
    assert not below.passed
    assert "does not beat the floor" in below.reason


class Drawn(torch.nn.Module):
    """Draws the first of the images that it was given."""

    def __init__(self, images: np.ndarray) -> None:
        super().__init__()
        self.images, self.size = torch.nn.Parameter(torch.from_numpy(images), requires_grad=False), images.shape[-1]
        self.drawn = 0

    def sample(self, n: int, labels: torch.Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        self.drawn += n
        return self.images[self.drawn - n : self.drawn]


def test_a_model_that_offers_nothing_to_measure_is_refused(params: Params, root: Path) -> None:
    with pytest.raises(DensitywatchError, match="neither a likelihood nor a reconstruction nor samples"):
        measure_samples(torch.nn.Identity(), np.zeros((9, 1, 8, 8), np.uint8), params, root)


def test_a_bound_is_measured_with_the_same_draws_each_time(params: Params, root: Path) -> None:
    folder = write_model(root, "gate_vae", kind="vae")
    decision = gate("x", folder, folder, without_floor(params), root)
    assert decision.passed
    assert decision.candidate == decision.champion


def test_a_model_of_another_image_size_is_rejected_with_both_sizes(params: Params, root: Path, tmp_path: Path) -> None:
    folder = write_model(root, "gate_size")
    prepared = tmp_path / "data" / "prepared"
    shutil.copytree(root / "data" / "prepared", prepared)
    np.save(prepared / "gate.npy", np.zeros((64, 1, 16, 16), dtype=np.uint8))
    reason = gate("x", folder, None, params, tmp_path).reason
    assert "8 x 8 pixels in grey and the prepared dataset has 16 x 16" in reason


def test_a_detector_whose_p_values_do_not_hold_is_rejected(params: Params, root: Path, tmp_path: Path) -> None:
    write_model(root, "pixelcnn", steps=40)
    folder = calibrate(params, root)
    prepared = tmp_path / "data" / "prepared"
    shutil.copytree(root / "data" / "prepared", prepared)
    passed = gate("detector", folder, None, without_floor(params), tmp_path)
    assert passed.passed, passed
    assert passed.candidate is not None
    assert passed.candidate.trivial is not None
    assert passed.candidate.trivial().value <= 0.5  # a coin, or better
    np.save(prepared / "gate.npy", 255 - np.load(prepared / "gate.npy"))
    decision = gate("detector", folder, None, params, tmp_path)
    assert not decision.passed
    assert "p-values do not hold on the gate's images" in decision.reason


def test_images_have_1_to_16_defects_of_all_kinds_in_turn() -> None:
    plain = np.random.default_rng(0).integers(0, 256, (120, 1, 16, 16)).astype(np.uint8)
    altered, rows = with_many_defects(plain, 3)
    again, _ = with_many_defects(plain, 3)
    assert (altered == again).all()
    changed = np.full(len(plain), np.nan)
    changed[rows] = (altered != plain[rows]).mean((1, 2, 3))
    by_number = [np.nanmean(changed[np.arange(120) // 6 % 5 == step]) for step in range(5)]
    assert by_number == sorted(by_number)
    assert by_number[0] < 0.1 < 0.3 < by_number[-1]
    assert len(rows) > 110
