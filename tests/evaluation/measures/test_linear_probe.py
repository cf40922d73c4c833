"""The linear probe: what it reads and when it is left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from densitywatch.data import reading
from densitywatch.data.dataset import open_split, read_info
from densitywatch.evaluation.measures import feature_network, likelihood
from densitywatch.evaluation.measures.context import Context
from densitywatch.evaluation.measures.feature_network import pixel_curve
from densitywatch.evaluation.measures.likelihood import exact_likelihood
from densitywatch.evaluation.measures.linear_probe import encoded, linear_probe, raw_pixels
from densitywatch.models.pixelcnn import PixelCNN, Settings
from densitywatch.params import Params, ProbeParams
from tests.evaluation.conftest import write_info


class Pixels(torch.nn.Module):
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).float()


def small_probe(params: Params) -> Params:
    probe = ProbeParams(labels=(50,), regularisation=(1e-2, 1e-1))
    return params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"probe": probe})})


def test_the_probe_on_pixels_is_the_reference_that_the_classifier_stage_leaves(
    context_of: Callable[..., Context], params: Params, project: Path
) -> None:
    params = small_probe(params)
    context = context_of(Pixels(), params=params)
    result = linear_probe(context)
    assert result is not None
    prepared = project / "data" / "prepared"
    reference = pixel_curve(*(open_split(prepared, s) for s in ("train", "validation", "test")), params=params)
    assert result.metrics == {
        "linear_probe_accuracy_50": pytest.approx(reference[50]),
        "linear_probe_accuracy": pytest.approx(reference[200]),
        "linear_probe_labels": 200,
    }
    assert reference[200] > 0.8
    train, test = open_split(prepared, "train"), open_split(prepared, "test")
    plain = LogisticRegression(max_iter=1000).fit(train.images.reshape(200, -1) / 255, train.labels)
    assert reference[200] == pytest.approx(plain.score(test.images.reshape(48, -1) / 255, test.labels), abs=0.08)
    assert (context.out / "linear_probe.svg").read_text().startswith("<svg")
    assert (context.out / "linear_probe.csv").read_text().startswith("features,labels,accuracy\nstandin,50,")


def test_a_density_reads_the_test_images_once_for_its_likelihood_and_its_probe(
    context_of: Callable[..., Context], params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = PixelCNN(Settings(channels=4, dilations=(1,)), channels=1, size=8, classes=0)
    context = context_of(model, params=params)
    with torch.no_grad():
        alone, labels = encoded(context, model, "test", None)
        assert exact_likelihood(context) is not None
        x = next(context.test_batches())[0]
        monkeypatch.delattr(Context, "batches")
        shared, same = encoded(context, model, "test", None)
        np.testing.assert_allclose(model.log_prob(x), model.log_prob_and_code(x)[0], rtol=1e-6)
    assert len(context.shared["test_codes"]) == 48
    np.testing.assert_allclose(shared, alone, atol=1e-6)
    np.testing.assert_array_equal(same, labels)


def few_within(count: int) -> Callable[[int, int], int]:
    """`images_within` with memory for `count` images of 64 float32 numbers."""
    return lambda most, bytes_an_image: reading.images_within(most, bytes_an_image, count * 64 * 4)


def test_pixels_that_do_not_fit_into_memory_are_left_out(
    params: Params, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_network, "images_within", few_within(100))
    prepared = project / "data" / "prepared"
    splits = (open_split(prepared, split) for split in ("train", "validation", "test"))
    assert list(pixel_curve(*splits, params=small_probe(params))) == [50, 100]


def test_codes_that_do_not_fit_into_memory_are_left_out_and_a_probe_reads_the_others(
    context_of: Callable[..., Context], params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "images_within", few_within(25))
    model = PixelCNN(Settings(channels=4, dilations=(1,)), channels=1, size=8, classes=0)  # 16 x 4 features
    context = context_of(model, params=params)
    with torch.no_grad():
        assert exact_likelihood(context) is not None
        features, labels = encoded(context, model, "test", None)
    assert len(context.shared["test_log_prob"]) == 48
    assert features.shape == (40, 64)  # two batches of 20
    np.testing.assert_array_equal(labels, context.split("test").labels[:40])


def test_without_labels_no_codes_are_kept(context_of: Callable[..., Context], project: Path) -> None:
    write_info(project, class_names=[])
    model = PixelCNN(Settings(channels=4, dilations=(1,)), channels=1, size=8, classes=0)
    context = context_of(model, info=read_info(project / "data" / "prepared"))
    with torch.no_grad():
        assert exact_likelihood(context) is not None
    assert "test_codes" not in context.shared


def test_the_curve_of_raw_pixels_is_drawn_next_to_the_models(
    context_of: Callable[..., Context], params: Params, tmp_path: Path
) -> None:
    (tmp_path / "raw_pixels.json").write_text('{"50": 0.5, "200": 0.75}')
    assert raw_pixels(tmp_path) == {50: 0.5, 200: 0.75}
    assert raw_pixels(tmp_path / "nowhere") == raw_pixels(None) == {}
    result = linear_probe(context_of(Pixels(), params=small_probe(params), classifier=tmp_path))
    assert result is not None
    assert "raw pixels 0.750" in result.figures[0].caption


def test_a_model_that_was_given_labels_and_one_without_features_are_not_probed(
    context_of: Callable[..., Context],
) -> None:
    told = Pixels()
    told.conditional = True
    assert linear_probe(context_of(told)) is None
    assert linear_probe(context_of(torch.nn.Identity())) is None


def test_without_labels_the_probe_is_left_out_and_it_is_said(context_of: Callable[..., Context], project: Path) -> None:
    write_info(project, class_names=[])
    result = linear_probe(context_of(Pixels(), info=read_info(project / "data" / "prepared")))
    assert result is not None
    assert result.metrics == {}
    assert "left out" in result.notes[0]
