"""The feature network learns, loads as it was saved, and takes images of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from densitywatch.evaluation.measures.feature_network import FeatureNetwork, classes_of, features_of, load_classifier
from densitywatch.params import ClassifierSettings, Params


def test_the_feature_network_learns_labels_and_loads_as_it_was_saved(with_classifier: tuple[Params, Path]) -> None:
    _, folder = with_classifier
    network = load_classifier(folder)
    images = np.load(folder.parents[1] / "data" / "prepared" / "test.npy")
    labels = np.load(folder.parents[1] / "data" / "prepared" / "test_labels.npy")
    assert (classes_of(network, images) == labels).mean() > 0.7
    assert features_of(network, images).shape == (len(images), 16)
    assert (folder.parents[1] / "metrics" / "classifier.json").exists()


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 9), (3, 64), (1, 4)])
def test_the_feature_network_takes_images_of_any_size_and_colour(channels: int, size: int) -> None:
    network = FeatureNetwork(ClassifierSettings(channels=4, features=6), channels=channels, size=size, classes=3).eval()
    x = torch.zeros(2, channels, size, size, dtype=torch.uint8)
    assert network.features(x).shape == (2, 6)
    assert network(x).shape == (2, 3)
