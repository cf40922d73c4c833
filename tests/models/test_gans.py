"""What the three adversarial models have in common: samples, labels, two losses for two players."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from densitywatch.errors import ParamsError
from densitywatch.params import ModelBlock
from densitywatch.training.sharing import check_share
from densitywatch.training.train import train_model
from tests.models.small_gans import SMALL, images, small
from tests.small_project import make_project


@pytest.mark.parametrize("module", SMALL)
def test_a_generator_on_the_cpu_draws_for_a_model_on_another_device(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_on = []

    def noted(function: Any) -> Any:
        def draw(*shape: Any, device: Any, **others: Any) -> torch.Tensor:
            drawn_on.append(torch.device(device).type)
            return function(*shape, device=device, **others)

        return draw

    for name in ("randn", "randint"):
        monkeypatch.setattr(torch, name, noted(getattr(torch, name)))
    model = small(module).to("meta")  # the one other device that every machine has
    assert model.latents(4, generator=torch.Generator()).device.type == "meta"
    assert set(drawn_on) == {"cpu"}


@pytest.mark.parametrize("module", SMALL)
@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 28, 10), (3, 4, 0), (3, 33, 2), (1, 9, 1)])
def test_samples_have_the_shape_of_the_data_whatever_its_size_colour_and_labels(
    module: Any, channels: int, size: int, classes: int
) -> None:
    model = small(module, channels=channels, size=size, classes=classes).eval()
    drawn = model.sample(4)
    assert drawn.shape == (4, channels, size, size)
    assert drawn.dtype == torch.uint8
    labels = torch.zeros(4, dtype=torch.long) if classes else torch.full((4,), -1)
    model.train()
    for loss, _ in (model.discriminator_loss(drawn, labels), model.generator_loss(4, labels)):
        assert math.isfinite(loss.item())


@pytest.mark.parametrize("module", SMALL)
def test_the_same_seed_gives_the_same_samples_and_another_seed_others(module: Any) -> None:
    model = small(module).eval()
    first, again, other = (model.sample(3, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("module", SMALL)
def test_each_players_loss_reaches_its_own_weights(module: Any) -> None:
    model = small(module)
    x, labels = images(4), torch.tensor([0, 1, 2, 0])
    model.discriminator_loss(x, labels)[0].backward()
    assert all(p.grad is None for p in model.generator.parameters())
    assert all(p.grad is not None for p in model.discriminator.parameters())
    model.generator_loss(4, labels)[0].backward()
    # a label that is not in the batch has no gradient of its own, but its row is there
    assert all(p.grad is not None for p in model.generator.parameters())


@pytest.mark.parametrize("kind", ["gan", "dcgan", "conditional_gan"])
def test_a_game_of_single_images_is_refused_before_it_begins(kind: str, project_root: Path, tmp_path: Path) -> None:
    params = make_project(tmp_path, project_root / "params.yaml")
    block = ModelBlock.model_validate({"kind": kind, "training": {"steps": 1, "batch_size": 1, "learning_rate": 1e-3}})
    device = params.device.model_copy(update={"accelerator": "cpu", "threads": 1})
    params = params.model_copy(update={"models": {"one": block}, "device": device})
    with pytest.raises(ParamsError, match=r"models\.one\.training\.batch_size: a game .* not 1; take 2 or more"):
        train_model("one", params, tmp_path)
    assert not (tmp_path / "models" / "one").exists()


def test_a_game_has_at_least_two_images_for_each_device() -> None:
    fabric = SimpleNamespace(world_size=3)
    check_share("models.gan", 6, fabric, game=True)
    check_share("models.vae", 3, fabric)
    with pytest.raises(ParamsError, match="at least 2 images for each device, not 1; take 6 or more"):
        check_share("models.gan", 3, fabric, game=True)
