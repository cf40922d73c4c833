"""Models of images that are larger than they are by default, of odd sizes too; and those of usual size as they were."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from densitywatch.evaluation.measures.feature_network import FeatureNetwork
from densitywatch.models.common.map_sizes import halvings
from densitywatch.models.storage import build_model
from densitywatch.params import ModelBlock
from densitywatch.params_models import ClassifierSettings

TOP = Path(__file__).parents[2]
DEFAULT: dict[str, Any] = yaml.safe_load((TOP / "params.yaml").read_text(encoding="utf-8"))["models"]
GPU: dict[str, Any] = yaml.safe_load((TOP / "profiles" / "gpu.yaml").read_text(encoding="utf-8"))["models"]
SMALL: dict[str, dict[str, Any]] = {
    "vae": {"channels": 4, "latent": 4},
    "pixelcnn": {"channels": 4, "dilations": [1]},
    "pixelrnn": {"channels": 4, "layers": 1},
    "conditional_pixelcnn": {"channels": 4, "dilations": [1], "context_channels": 4},
    "autoencoder": {"channels": 4},
    "gan": {"generator": [8], "discriminator": [8]},
    "dcgan": {"generator_channels": 16, "discriminator_channels": 4},
    "conditional_gan": {"generator_channels": 16, "discriminator_channels": 4},
}
MOST = 20_000_000


def build(name: str, settings: dict[str, Any], channels: int, size: int) -> Any:
    block = ModelBlock.model_validate({**DEFAULT[name], "settings": {**DEFAULT[name]["settings"], **settings}})
    torch.manual_seed(0)
    return build_model(block, channels=channels, size=size, classes=10)


def test_the_smallest_map_has_4_to_8_pixels_a_side_and_2_or_3_for_the_smallest_images() -> None:
    for size in range(4, 300):
        side = size
        for _ in range(halvings(size)):
            side = (side + 1) // 2
        assert side in range(4, 9) if size >= 7 else side in (2, 3)


@pytest.mark.parametrize(("size", "times"), [(4, 2), (16, 2), (17, 4), (32, 4), (64, 4)])
def test_the_feature_networks_last_convolution_is_that_many_times_as_wide(size: int, times: int) -> None:
    network = FeatureNetwork(ClassifierSettings(channels=2, features=4), channels=1, size=size, classes=3)
    widths = [layer.out_channels for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert (widths[0], widths[-1]) == (2, 2 * times)


@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("name", DEFAULT)
def test_a_model_of_large_colour_images_has_fewer_than_20_million_parameters(name: str, size: int) -> None:
    for settings in ({}, GPU[name]["settings"]):
        assert sum(p.numel() for p in build(name, settings, 3, size).parameters()) < MOST


@pytest.mark.parametrize(("channels", "size"), [(3, 33), (1, 49), (3, 65)])
@pytest.mark.parametrize("name", DEFAULT)
def test_a_model_trains_and_answers_at_large_and_odd_sizes(name: str, channels: int, size: int) -> None:
    model = build(name, SMALL[name], channels, size)
    x = torch.randint(0, 256, (3, channels, size, size), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2])
    if hasattr(model, "loss"):
        losses = [model.loss(x, labels)[0]]
    else:
        losses = [model.discriminator_loss(x, labels)[0], model.generator_loss(3, labels)[0]]
    for loss in losses:
        assert torch.isfinite(loss)
    sum(losses).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    model.eval()
    given = labels if getattr(model, "conditional", False) else None
    if hasattr(model, "log_prob_map"):
        with torch.no_grad():
            assert model.log_prob_map(x, given).shape == (3, size, size)
    elif hasattr(model, "sample"):
        assert model.sample(3, labels=given).shape == x.shape
    if hasattr(model, "reconstruct"):
        assert model.reconstruct(x).shape == x.shape


@pytest.mark.parametrize("name", ["pixelcnn", "pixelrnn", "conditional_pixelcnn"])
def test_pixels_drawn_one_by_one_see_the_same_positions_at_a_large_size(name: str) -> None:
    size = 33
    model = build(name, SMALL[name], 1, size).eval()
    parameters = dict(model.named_parameters())
    assert parameters["position.rows"].shape[2] == parameters["position.columns"].shape[3] == size
    with torch.no_grad():
        for key in ("position.rows", "position.columns"):
            parameters[key].normal_()
        labels = torch.zeros(1, dtype=torch.int64) if model.conditional else None
        x = torch.randint(0, 256, (1, 1, size, size), dtype=torch.uint8)
        features = model.features(x, labels)
        steps = model.steps(1, labels)
        for i in range(3):
            steps.start_row(i)
            for j in range(size):
                assert torch.allclose(steps.features(j), features[:, :, i, j], atol=1e-4)
                steps.put(j, 0, x[:, 0, i, j].float() / 127.5 - 1.0)


def test_the_plain_gan_of_large_images_is_a_linear_map_of_every_pixel() -> None:
    game = build("gan", {}, 1, 100).eval()
    first = game.discriminator[:3]  # the two matrices, flattening, the first full layer
    images = torch.randn(2, 1, 100, 100, requires_grad=True)
    first(images).abs().sum().backward()
    assert images.grad is not None
    assert (images.grad != 0).all()
    with torch.no_grad():
        a, b = first(images), first(2 * images)
        assert torch.allclose(b - a, a - first(0 * images), atol=1e-4)


DIGESTS = {
    "vae": "13206f2bfe19df63",
    "pixelcnn": "028fd69a340c22ce",
    "pixelrnn": "59576e3fd08a13ba",
    "conditional_pixelcnn": "21905611378ed6ef",
    "autoencoder": "8de786280766529f",
    "gan": "f37bc3695fec9570",
    "dcgan": "f680e172ca96626d",
    "conditional_gan": "2713a60652c22838",
}
"""Of the names and shapes of the default networks' weights at 28 x 28 grey and 32 x 32 RGB, before larger ones came."""


@pytest.mark.parametrize("name", DEFAULT)
def test_networks_of_usual_size_are_what_they_were(name: str) -> None:
    shapes = [(key, tuple(value.shape)) for key, value in build(name, {}, 1, 28).state_dict().items()]
    shapes += [(key, tuple(value.shape)) for key, value in build(name, {}, 3, 32).state_dict().items()]
    assert hashlib.sha256(repr(shapes).encode()).hexdigest()[:16] == DIGESTS[name]
