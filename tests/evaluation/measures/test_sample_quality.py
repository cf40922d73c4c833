"""Sample quality: distances against closed forms and hand-made sets, and what is said where something is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from densitywatch.errors import ModelError
from densitywatch.evaluation.measures.context import Context
from densitywatch.evaluation.measures.distances import (
    frechet_distance,
    kernel_distance,
    manifold_figures,
    nearest_distances,
)
from densitywatch.evaluation.measures.feature_network import (
    FeatureNetwork,
    classes_of,
    features_of,
    load_classifier,
    train_classifier,
)
from densitywatch.evaluation.measures.label_quality import label_quality
from densitywatch.evaluation.measures.sample_quality import draw, quality_figure, sample_quality
from densitywatch.params import ClassifierParams, ClassifierSettings, Params, TrainingParams
from tests.evaluation.conftest import write_info


class Shows(torch.nn.Module):
    """A stand-in generative model that hands out given images, one label each, one after the other."""

    def __init__(self, images: np.ndarray, labels: np.ndarray | None = None) -> None:
        super().__init__()
        self.images, self.labels, self.position = torch.from_numpy(images), labels, 0
        self.conditional = labels is not None
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def sample(self, n: int, labels: torch.Tensor | None = None, generator: Any = None) -> torch.Tensor:
        if labels is not None:
            assert self.labels is not None
            return torch.stack([self.images[np.flatnonzero(self.labels == label)[0]] for label in labels.tolist()])
        chosen = torch.arange(self.position, self.position + n) % len(self.images)
        self.position += n
        return self.images[chosen]


@pytest.fixture
def with_classifier(params: Params, project: Path) -> tuple[Params, Path]:
    """Params and folder of a project whose feature network has learned a little."""
    training = TrainingParams(
        steps=60,
        batch_size=32,
        learning_rate=5e-3,
        warmup_steps=5,
        evaluate_every=60,
        checkpoint_every=60,
        ema_decay=0.9,
    )
    settings = ClassifierSettings(channels=8, features=16)
    params = params.model_copy(update={"classifier": ClassifierParams(settings=settings, training=training)})
    return params, train_classifier(params, project)


def test_the_frechet_distance_of_gaussians_is_that_of_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2, 200_000, 3, generator=generator, dtype=torch.float64)
    scale_a, scale_b = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([2.0, 2.0, 1.0])
    shift = torch.tensor([1.0, -2.0, 0.0])
    # diagonal covariances: |difference of means|^2 + sum of (difference of deviations)^2
    expected = float((shift**2).sum() + ((scale_a - scale_b) ** 2).sum())
    assert frechet_distance(draws[0] * scale_a, draws[1] * scale_b + shift) == pytest.approx(expected, rel=0.01)


def test_both_distances_of_a_set_from_itself_are_about_zero_and_of_disjoint_sets_are_not() -> None:
    features = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(features, features) == pytest.approx(0.0, abs=1e-6)
    assert kernel_distance(features, features, subset_size=250) == pytest.approx(0.0, abs=0.1)
    assert frechet_distance(features, features + 3) == pytest.approx(72.0, rel=1e-4)
    assert kernel_distance(features, features + 3, subset_size=250) > 1.0


def test_precision_falls_for_wild_samples_and_recall_for_samples_that_lack_variety() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(600, 2, generator=generator)
    alike = manifold_figures(real, torch.randn(600, 2, generator=generator), 5)
    assert all(value > 0.8 for value in alike.values())
    assert alike["density"] == pytest.approx(1.0, abs=0.15)
    wild = manifold_figures(real, torch.randn(600, 2, generator=generator) * 20, 5)
    assert wild["precision"] < 0.2
    assert wild["density"] < 0.2
    dull = manifold_figures(real, torch.randn(600, 2, generator=generator) * 0.05, 5)
    assert dull["precision"] > 0.9
    assert dull["recall"] < 0.1
    assert dull["coverage"] < 0.2


def test_the_manifold_figures_of_a_small_set_are_those_counted_by_hand() -> None:
    real = torch.tensor([[0.0], [1.0], [3.0], [10.0]])  # with k = 1 the balls' radii are 1, 1, 2, 7
    generated = torch.tensor([[0.5], [6.0], [30.0]])  # 5.5, 5.5, 24
    figures = manifold_figures(real, generated, 1)
    assert figures["precision"] == pytest.approx(2 / 3)  # 0.5 in two balls, 6.0 in the last one's, 30 in none
    assert figures["recall"] == pytest.approx(1.0)  # 0, 1, 3 near 0.5; 10 near 6
    assert figures["density"] == pytest.approx((2 + 1 + 0) / 3)
    assert figures["coverage"] == pytest.approx(3 / 4)  # nothing came near 3


def test_nearest_distances_are_those_of_a_full_search() -> None:
    a, b = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
    values, indices = nearest_distances(a, b, 2)
    full = (a[:, None] - b[None]).norm(dim=2)
    assert torch.allclose(values, full.sort(1).values[:, :2], atol=1e-4)
    assert torch.equal(indices[:, 0], full.argmin(1))


def test_the_feature_network_learns_labels_and_loads_as_it_was_saved(with_classifier: tuple[Params, Path]) -> None:
    _, folder = with_classifier
    network = load_classifier(folder)
    images = np.load(folder.parents[1] / "data" / "prepared" / "test.npy")
    labels = np.load(folder.parents[1] / "data" / "prepared" / "test_labels.npy")
    assert (classes_of(network, images) == labels).mean() > 0.7
    assert features_of(network, images).shape == (len(images), 16)
    assert (folder.parents[1] / "metrics" / "classifier.json").exists()


def test_real_images_are_of_far_better_quality_than_noise(
    with_classifier: tuple[Params, Path], context_of: Callable[..., Context]
) -> None:
    params, folder = with_classifier
    prepared = folder.parents[1] / "data" / "prepared"
    real = np.load(prepared / "train.npy")
    noise = np.random.default_rng(0).integers(0, 256, real.shape, dtype=np.uint8)
    quality = params.evaluate.quality.model_copy(update={"images": 100})
    params = params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"quality": quality})})
    found = {}
    for name, images in (("real", real), ("noise", noise)):
        result = sample_quality(context_of(Shows(images), params=params, classifier=folder))
        assert result is not None
        found[name] = result.metrics
        assert "feature space of this project's own network" in result.notes[0]
        assert (folder.parents[1] / "pictures" / "neighbours.png").stat().st_size > 100
    for key in ("fid", "kid"):
        assert float(found["real"][key]) < 0.4 * float(found["noise"][key])
    # density counts the balls a sample lies in: noise that falls together inside a wide one can have more
    for key in ("precision", "coverage"):
        assert float(found["real"][key]) > float(found["noise"][key])
    assert float(found["real"]["neighbour_ratio"]) == 0.0  # they are the training images: a memoriser shows
    assert float(found["noise"]["neighbour_ratio"]) > 0.5
    assert float(found["real"]["fid_floor"]) > 0


def test_samples_of_the_label_asked_for_pass_gan_test_and_samples_of_another_do_not(
    with_classifier: tuple[Params, Path], context_of: Callable[..., Context]
) -> None:
    params, folder = with_classifier
    prepared = folder.parents[1] / "data" / "prepared"
    images, labels = np.load(prepared / "train.npy"), np.load(prepared / "train_labels.npy")
    quality = params.evaluate.quality.model_copy(update={"images": 60, "label_training_steps": 3})
    params = params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"quality": quality})})
    right = label_quality(context_of(Shows(images, labels), params=params, classifier=folder))
    wrong = label_quality(context_of(Shows(images, (labels + 1) % 10), params=params, classifier=folder))
    assert right is not None
    assert wrong is not None
    assert float(right.metrics["gan_test_accuracy"]) > 0.8
    assert float(wrong.metrics["gan_test_accuracy"]) < 0.2
    assert 0 <= float(right.metrics["gan_train_accuracy"]) <= 1
    assert label_quality(context_of(torch.nn.Identity(), params=params, classifier=folder)) is None


def test_without_labels_the_network_learns_rotations_and_everything_that_needs_none_still_runs(
    with_classifier: tuple[Params, Path], project: Path, context_of: Callable[..., Context]
) -> None:
    params, _ = with_classifier
    write_info(project, class_names=[])
    for split in ("train", "validation", "test"):
        labels = np.load(project / "data" / "prepared" / f"{split}_labels.npy")
        np.save(project / "data" / "prepared" / f"{split}_labels.npy", np.full_like(labels, -1))
    folder = train_classifier(params, project)
    assert load_classifier(folder).rotations
    images = np.load(project / "data" / "prepared" / "train.npy")
    result = sample_quality(context_of(Shows(images), params=params, classifier=folder))
    assert result is not None
    assert "rotations" in result.notes[0]
    assert np.isfinite(float(result.metrics["fid"]))
    conditional = Shows(images, np.zeros(len(images), dtype=np.int64))
    left_out = label_quality(context_of(conditional, params=params, classifier=folder))
    assert left_out is not None
    assert "left out" in left_out.notes[0]


def test_without_a_feature_network_the_figures_are_left_out_and_it_is_said(
    context_of: Callable[..., Context], digits: tuple[np.ndarray, np.ndarray]
) -> None:
    result = sample_quality(context_of(Shows(digits[0])))
    assert result is not None
    assert result.metrics == {}
    assert "left out" in result.notes[0]
    assert sample_quality(context_of(torch.nn.Identity())) is None


def test_the_gates_figure_prefers_real_images_repeats_itself_and_fails_without_a_network(
    with_classifier: tuple[Params, Path], project: Path
) -> None:
    params, _ = with_classifier
    params = params.model_copy(update={"gate": params.gate.model_copy(update={"images": 30})})
    real = np.load(project / "data" / "prepared" / "train.npy")
    noise = np.random.default_rng(0).integers(0, 256, real.shape, dtype=np.uint8)
    figure = quality_figure(Shows(real), params, project)
    assert figure == quality_figure(Shows(real), params, project)
    assert figure < quality_figure(Shows(noise), params, project)
    with pytest.raises(ModelError, match="draws no samples"):
        quality_figure(torch.nn.Linear(1, 1), params, project)
    with pytest.raises(ModelError, match="no such model"):
        quality_figure(Shows(real), params, project / "elsewhere")


def test_samples_are_drawn_a_batch_at_a_time_with_their_own_labels() -> None:
    images = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    asked = np.array([3, 1, 1, 0, 2])
    parts = list(draw(Shows(images, np.arange(4)), 5, asked, torch.Generator(), 2))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert np.concatenate(parts).ravel().tolist() == asked.tolist()


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 9), (3, 64), (1, 4)])
def test_the_feature_network_takes_images_of_any_size_and_colour(channels: int, size: int) -> None:
    network = FeatureNetwork(ClassifierSettings(channels=4, features=6), channels=channels, size=size, classes=3).eval()
    x = torch.zeros(2, channels, size, size, dtype=torch.uint8)
    assert network.features(x).shape == (2, 6)
    assert network(x).shape == (2, 3)


def test_weights_that_are_not_inceptions_are_refused_before_they_take_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    from densitywatch.evaluation.measures.inception import inception, load_inception

    names = inception().state_dict().keys()
    small, another = tmp_path / "small.safetensors", tmp_path / "another.safetensors"
    safetensors.torch.save_file({name: torch.zeros(1) for name in names}, small)
    safetensors.torch.save_file({name: torch.zeros(1) for name in names} | {"more": torch.zeros(9)}, another)
    monkeypatch.setattr(safetensors.torch, "load_file", lambda *_: pytest.fail("their data was read"))
    for path, reason in ((small, "has the shape"), (another, "'more' is in the file alone")):
        with pytest.raises(ModelError, match=f"not Inception's weights as safetensors.*{reason}"):
            load_inception(path)


def test_the_published_fid_needs_inceptions_weights_and_says_what_is_wrong_with_others(tmp_path: Path) -> None:
    import safetensors.torch

    from densitywatch.evaluation.measures.inception import inception, inception_fid, load_inception

    torch.manual_seed(0)
    whole = tmp_path / "inception.safetensors"
    safetensors.torch.save_file(inception().state_dict(), whole)
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
    assert inception_fid(whole, images[:3], images[3:]) > 0
    assert inception_fid(whole, images[:3], images[:3]) == pytest.approx(0.0, abs=1e-3)
    with pytest.raises(ModelError, match="no such file"):
        load_inception(tmp_path / "elsewhere.safetensors")
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(1)}, other)
    with pytest.raises(ModelError, match="not Inception's weights"):
        load_inception(other)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a file of weights")
    with pytest.raises(ModelError, match="not Inception's weights"):
        load_inception(broken)
