"""What each model offers, by the protocols of models/offers.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from densitywatch.models import offers
from densitywatch.models.storage import build_model, find_models
from densitywatch.params import ModelBlock

PIXELS = {"ExactDensity", "PixelwiseDensity", "LabelDensity", "DensityAndCode", "Sampler", "Encoder", "PixelSteps"}
GAMES = {"Game", "Sampler", "LatentPrior", "Decoder"}
OFFERED = {
    "pixelcnn": {*PIXELS, "EveryLabel", "SingleLoss"},
    "pixelcnn_pyramid": {"ExactDensity", "PixelwiseDensity", "Sampler", "Encoder", "ValueWalk", "SingleLoss"},
    "pixelrnn": {*PIXELS, "SingleLoss"},
    "vae": {
        *("Bounded", "BoundTerms", "ImportanceBounded", "Posterior"),
        *("Sampler", "Encoder", "Decoder", "Reconstructor", "SingleLoss"),
    },
    "autoencoder": {"Encoder", "Decoder", "Reconstructor", "SingleLoss"},
    "gan": GAMES,
    "dcgan": {*GAMES, "Encoder"},
    "conditional_gan": GAMES,
}
CHECKED = {
    name: found
    for name, found in vars(offers).items()
    if isinstance(found, type) and vars(found).get("_is_runtime_protocol")
}


def small(kind: str, classes: int = 0, **settings: Any) -> Any:
    block = ModelBlock(kind=kind, settings=settings, training={"steps": 1, "batch_size": 1, "learning_rate": 0.1})
    return build_model(block, channels=1, size=8, classes=classes)


@pytest.mark.parametrize("kind", find_models())
def test_a_model_offers_what_it_can_do_and_nothing_more(kind: str) -> None:
    model = small(kind)
    assert {name for name, protocol in CHECKED.items() if isinstance(model, protocol)} == OFFERED[kind]


def test_the_players_of_a_game_are_networks() -> None:
    for kind in find_models():
        model = small(kind)
        assert isinstance(model, offers.Game) == hasattr(model, "discriminator") == hasattr(model, "generator")


def test_a_class_of_any_kind_offers_what_it_has_a_method_for() -> None:
    class Dice(nn.Module):
        def sample(self, n: int, labels: object = None, generator: object = None) -> torch.Tensor:
            return torch.zeros(n, 1, 4, 4, dtype=torch.uint8)

    assert isinstance(Dice(), offers.Sampler)
    assert not isinstance(Dice(), offers.Encoder)
    assert not isinstance(object(), offers.Sampler)


def test_a_model_takes_labels_where_it_was_made_with_them() -> None:
    assert offers.takes_labels(small("pixelcnn", classes=3, conditional=True))
    assert not offers.takes_labels(small("pixelcnn", classes=0, conditional=True))
    assert not offers.takes_labels(small("pixelcnn", classes=3))
    assert offers.takes_labels(small("conditional_gan", classes=3))
    assert not offers.takes_labels(small("gan", classes=3))
