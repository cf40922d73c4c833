"""What the networks are worth: the untrained twin, and the interval of a paired difference."""

from __future__ import annotations

import numpy as np
import torch

from densitywatch.models.pixelcnn import PixelCNN, Settings
from densitywatch.outlier_benchmark.auroc import auroc
from densitywatch.outlier_benchmark.controls import UNTRAINED, gains, paired_gain, untrained


def test_the_untrained_twin_has_the_form_of_the_model_and_none_of_its_training() -> None:
    model = PixelCNN(Settings(channels=4, dilations=(1, 2), components=2), channels=1, size=6, classes=0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)
    state = torch.random.get_rng_state()
    twin = untrained(model, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {name: w.shape for name, w in twin.state_dict().items()} == {
        name: w.shape for name, w in model.state_dict().items()
    }
    assert not torch.equal(twin.get_parameter("head.out.weight"), model.get_parameter("head.out.weight"))
    again = untrained(model, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), again.parameters(), strict=True))


def _scores(rng: np.random.Generator, images: int, gain: float) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Scores of two detectors that share most of their noise, the first better by `gain` standard deviations."""
    shared = {kind: rng.normal(size=images) for kind in ("normal", "a", "b")}
    first = {kind: noise + rng.normal(size=images) * 0.3 for kind, noise in shared.items()}
    other = {kind: noise + rng.normal(size=images) * 0.3 for kind, noise in shared.items()}
    for kind in ("a", "b"):
        first[kind] = first[kind] + 1.0 + gain
        other[kind] = other[kind] + 1.0
    return first, other


def test_a_paired_gain_is_the_difference_of_mean_auroc() -> None:
    first, other = _scores(np.random.default_rng(0), 300, 0.2)
    value = paired_gain(first, other, "normal", ["a", "b"], seed=0)[0]
    means = [np.mean([auroc(score["normal"], score[kind]) for kind in ("a", "b")]) for score in (first, other)]
    assert np.isclose(value, means[0] - means[1], atol=1e-9)


def test_the_interval_of_a_paired_gain_holds_zero_in_about_95_of_100_cases_without_a_gain() -> None:
    rng, runs = np.random.default_rng(1), 100
    held = 0
    for seed in range(runs):
        _, low, high = paired_gain(*_scores(rng, 80, 0.0), "normal", ["a", "b"], seed=seed)
        held += low <= 0 <= high
    # 95 % within three standard errors of 100 runs
    assert abs(held / runs - 0.95) < 3 * np.sqrt(0.95 * 0.05 / runs)


def test_a_gain_that_is_there_is_seen() -> None:
    assert paired_gain(*_scores(np.random.default_rng(2), 400, 0.4), "normal", ["a", "b"], seed=0)[1] > 0


def test_a_control_that_read_the_first_images_is_held_against_the_same_ones() -> None:
    first, other = _scores(np.random.default_rng(3), 300, 0.2)
    few = {kind: values[:100] for kind, values in other.items()}
    found = gains({"detector": first, UNTRAINED: few}, "detector", "normal", seed=0)
    same = {kind: values[:100] for kind, values in first.items()}
    assert found == {UNTRAINED: paired_gain(same, few, "normal", ["a", "b"], seed=0)}
