"""DCGAN: features for other tasks."""

from __future__ import annotations

import torch

from densitywatch.models import dcgan
from tests.models.small_gans import images, small


def test_the_features_of_dcgan_are_its_discriminators_activations_on_a_4_by_4_grid() -> None:
    model = small(dcgan, size=28).eval()
    features = model.encode(images(3, size=28))
    assert features.shape == (3, (4 + 8) * 16)
    assert not torch.equal(features[0], features[1])
