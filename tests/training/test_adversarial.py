"""The adversarial step: two players, two time scales, and a game that collapsed is named."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from densitywatch import devices
from densitywatch.data.dataset import Split
from densitywatch.devices import start_fabric
from densitywatch.models.storage import build_model
from densitywatch.params import DeviceParams, ModelBlock, TrainingParams
from densitywatch.training.adversarial import adversarial_step, adversarial_warnings
from densitywatch.training.loop import Run, train
from densitywatch.training.optimizers import make_optimizers

SETTINGS: dict[str, dict[str, Any]] = {
    "gan": {"latent": 4, "generator": [8], "discriminator": [8]},
    "dcgan": {"latent": 4, "generator_channels": 16, "discriminator_channels": 4},
    "conditional_gan": {"latent": 4, "generator_channels": 16, "discriminator_channels": 4},
}


def training(**changes: Any) -> TrainingParams:
    usual = {"steps": 6, "batch_size": 4, "learning_rate": 1e-3, "evaluate_every": 2, "checkpoint_every": 3}
    return TrainingParams(**(usual | changes))


def made(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    block = ModelBlock(kind=kind, settings=SETTINGS[kind], training=training())
    return build_model(block, channels=1, size=8, classes=3).to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def fabric() -> Any:
    return start_fabric(DeviceParams(accelerator="cpu", threads=1))


@pytest.fixture
def split() -> Split:
    rng = np.random.default_rng(0)
    return Split(rng.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8), rng.integers(0, 3, 40))


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_step_moves_both_players_and_logs_how_the_game_stands(fabric: Any, kind: str, split: Split) -> None:
    model = made(kind)
    before = copy.deepcopy(model)
    x, labels = torch.from_numpy(split.images[:8].copy()), torch.from_numpy(split.labels[:8])
    settings = training(discriminator_learning_rate=1e-2)
    logs = adversarial_step(fabric, model, make_optimizers(model, settings), x, labels, settings)
    assert {
        "discriminator_loss",
        "generator_loss",
        "discriminator_gradient_norm",
        "generator_gradient_norm",
        "discriminator_accuracy",
        "spread_ratio",
    } <= logs.keys()
    assert all(torch.isfinite(value) for value in logs.values())

    def moved(player: str) -> float:
        pairs = zip(getattr(model, player).parameters(), getattr(before, player).parameters(), strict=True)
        return max(float((new - old).detach().abs().max()) for new, old in pairs)

    # Adam's first step is the learning rate, whatever the gradient's size: two time scales show at once
    assert moved("generator") == pytest.approx(1e-3, rel=0.1)
    assert moved("discriminator") == pytest.approx(1e-2, rel=0.1)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("kind", SETTINGS)
def test_both_players_compute_in_the_precision_of_the_run(
    kind: str, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "computes_bfloat16", lambda: True)  # emulated where it does not
    fabric = start_fabric(DeviceParams(accelerator="cpu", threads=1, precision="bf16-mixed"))
    model: Any = made(kind)
    trained = fabric.setup_module(model)
    dtypes = set()
    for player in (model.generator, model.discriminator):
        for layer in player.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.register_forward_hook(lambda _layer, _inputs, output: dtypes.add(output.dtype))
    x, labels = torch.from_numpy(split.images[:8].copy()), torch.from_numpy(split.labels[:8])
    logs = adversarial_step(fabric, trained, make_optimizers(model, training()), x, labels, training())
    assert dtypes == {torch.bfloat16}
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert all(torch.isfinite(value) for value in logs.values())


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_game_that_was_stopped_and_goes_on_ends_with_the_same_weights(
    fabric: Any, kind: str, split: Split, tmp_path: Path
) -> None:
    def play(folder: Path, steps: int) -> dict[str, torch.Tensor]:
        settings, run = training(steps=6), Run(name=kind, seed=2, folder=folder, identity="one")
        if steps < 6:  # stop: the loop ends early, the schedule stays that of the whole run
            images = Stopping(split.images, split.labels)
            images.left = steps
            with pytest.raises(KeyboardInterrupt):
                train(fabric, made(kind), images, split, settings, run)
            return {}
        best, _ = train(fabric, made(kind), split, split, settings, run)
        return best.state_dict()

    whole = play(tmp_path / "whole", 6)
    play(tmp_path / "resumed", 4)
    resumed = play(tmp_path / "resumed", 6)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


class Stopping(Split):
    """A split whose reader is interrupted after `left` batches."""

    left: int

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        object.__setattr__(self, "images", Reader(self, images))
        object.__setattr__(self, "labels", labels)

    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


class Reader:
    def __init__(self, owner: Stopping, images: np.ndarray) -> None:
        self.owner, self.images = owner, images

    def __getitem__(self, chosen: np.ndarray) -> np.ndarray:
        if self.owner.left == 0:
            raise KeyboardInterrupt
        self.owner.left -= 1
        return self.images[chosen]


def row(step: int, accuracy: float, spread: float) -> dict[str, float]:
    return {"step": step, "train_discriminator_accuracy": accuracy, "train_spread_ratio": spread}


def test_a_discriminator_that_wins_to_the_end_and_a_generator_of_one_image_are_named() -> None:
    won = adversarial_warnings([row(i, 1.0, 0.8) for i in range(9)])
    assert len(won) == 1
    assert won[0].startswith("collapsed discriminator")
    alike = adversarial_warnings([row(i, 0.7, 0.01) for i in range(9)])
    assert len(alike) == 1
    assert alike[0].startswith("collapsed generator")


def test_a_warning_claims_no_steps_but_those_that_were_looked_at() -> None:
    """A row is the mean over the steps just before it, at most LOG_EVERY, and not over all since the row before."""
    for warning in adversarial_warnings([row(500 * i, 1.0, 0.01) for i in range(1, 10)]):
        assert "in the steps just before each row of history.json from step 3500 to 4500" in warning
        assert "since" not in warning


def test_a_game_that_recovers_and_a_model_without_a_game_give_no_warning() -> None:
    assert adversarial_warnings([row(i, 1.0, 0.0) for i in range(5)] + [row(i, 0.8, 0.9) for i in range(5, 9)]) == []
    assert adversarial_warnings([{"step": 1.0, "train_loss": 3.0}]) == []
    assert adversarial_warnings([]) == []


def test_a_collapsed_game_is_a_warning_of_the_run(fabric: Any, split: Split, tmp_path: Path) -> None:
    model: Any = made("gan")
    torch.nn.init.zeros_(model.generator[-3].weight)  # every image is the bias of the last layer
    settings = training(steps=2, learning_rate=1e-9, discriminator_learning_rate=1e-9)
    run = Run(name="gan", seed=1, folder=tmp_path, identity="one")
    _, progress = train(fabric, model, split, split, settings, run)
    assert any(warning.startswith("collapsed generator") for warning in progress.warnings)
