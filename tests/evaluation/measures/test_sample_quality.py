"""Sample quality on the feature network, and what is said where something is missing."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from densitywatch.evaluation.measures.context import Context
from densitywatch.evaluation.measures.feature_network import load_classifier, train_classifier
from densitywatch.evaluation.measures.label_quality import label_quality
from densitywatch.evaluation.measures.sample_quality import draw, drawn, sample_quality
from densitywatch.params import Params
from tests.evaluation.conftest import write_info
from tests.evaluation.standins import Shows


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


def test_models_that_draw_many_and_few_samples_are_compared_on_the_same_number(
    with_classifier: tuple[Params, Path], context_of: Callable[..., Context]
) -> None:
    params, folder = with_classifier
    real = np.load(folder.parents[1] / "data" / "prepared" / "train.npy")
    found = {}
    for count in (30, 100):
        quality = params.evaluate.quality.model_copy(update={"images": count, "slow_images": 30})
        changed = params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"quality": quality})})
        result = sample_quality(context_of(Shows(real), params=changed, classifier=folder))
        assert result is not None
        # the median distance to training images does not depend on how many samples there are
        found[count] = {key: value for key, value in result.metrics.items() if key != "neighbour_ratio"}
    few, many = found[30], found[100]
    assert many.pop("more_images") == 100
    # the samples are training images: they have the floor's figures at either number, and more of them a lower FID
    assert many["fid_of_more"] == many.pop("fid_floor_of_more")
    assert float(many.pop("fid_of_more")) < float(many["fid"])
    assert many == few
    assert few["fid"] == few["fid_floor"]
    for key in ("precision", "recall", "density", "coverage"):
        assert few[key] == few[f"{key}_of_real"]
    assert few["quality_images"] == 30


@pytest.mark.slow
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


class Grey(torch.nn.Module):
    """Samples whose memory is numpy's, which tracemalloc sees."""

    def sample(self, n: int, labels: torch.Tensor | None = None, generator: Any = None) -> torch.Tensor:
        return torch.from_numpy(np.full((n, 1, 8, 8), 127, np.uint8))


def test_samples_are_in_memory_once(context_of: Callable[..., Context]) -> None:
    context = context_of(Grey())
    tracemalloc.start()
    try:
        images = drawn(context, Grey(), 10_010, None)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert images.shape == (10_010, 1, 8, 8)
    assert (images == 127).all()
    assert most < 1.5 * images.nbytes


def test_samples_are_drawn_a_batch_at_a_time_with_their_own_labels() -> None:
    images = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    asked = np.array([3, 1, 1, 0, 2])
    parts = list(draw(Shows(images, np.arange(4)), 5, asked, torch.Generator(), 2, torch.device("cpu")))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert np.concatenate(parts).ravel().tolist() == asked.tolist()
