"""Expected surprise against the 256 probabilities that it is computed from."""

from __future__ import annotations

import math

import pytest
import torch

from densitywatch.detector.feature_cache import Models
from densitywatch.detector.member import FittingData
from densitywatch.detector.pixel_surprise import surprise_statistics
from densitywatch.errors import ModelError
from densitywatch.models.pixelcnn import PixelCNN, Settings


@pytest.mark.parametrize("head", ["softmax", "logistic_mixture"])
@pytest.mark.parametrize("channels", [1, 3])
def test_expected_surprise_and_its_variance_are_those_of_the_256_probabilities(head: str, channels: int) -> None:

    torch.manual_seed(0)
    settings = Settings(channels=4, dilations=(1,), head=head, components=3)
    model = PixelCNN(settings, channels=channels, size=5, classes=0)
    x = torch.randint(0, 256, (2, channels, 5, 5), dtype=torch.uint8)
    with torch.no_grad():
        surprise, expected, variance = surprise_statistics(model, x)
        features = model.features(x)
        tables = [model.head.table(features, x, k) for k in range(channels)]  # (B, 256, H, W) each
        entropy = sum(-(t.exp() * t).sum(1) for t in tables)
        second = sum((t.exp() * t**2).sum(1) - (t.exp() * t).sum(1) ** 2 for t in tables)
        assert torch.allclose(surprise, -model.log_prob_map(x), atol=1e-4)
        assert torch.allclose(expected, entropy, atol=2e-3)
        assert torch.allclose(variance, second, atol=2e-2)


def test_surplus_surprise_is_zero_on_average_under_the_model_itself(given: tuple[FittingData, Models]) -> None:
    model = given[1]["pixelcnn"]
    with torch.no_grad():
        x = model.sample(60, generator=torch.Generator().manual_seed(3))
        surprise, expected, variance = (part.sum((1, 2)) for part in surprise_statistics(model, x))
    z = ((surprise - expected) / variance.sqrt()).numpy()
    assert abs(z.mean()) < 4 / math.sqrt(60)
    assert 0.6 < z.std() < 1.4


def test_a_model_without_pixel_distributions_is_refused() -> None:
    with pytest.raises(ModelError, match="no distribution for each pixel"):
        surprise_statistics(torch.nn.Linear(1, 1), torch.zeros(1, 1, 4, 4, dtype=torch.uint8))
