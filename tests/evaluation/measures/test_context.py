"""What evaluators get of the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from densitywatch.data import reading
from densitywatch.evaluation.measures.context import Context, spread
from densitywatch.params import Params
from tests.evaluation.conftest import COUNTS


def test_a_limited_pick_holds_every_label_in_its_share(project: Path, context_of: Callable[..., Context]) -> None:
    # a split's order mixes the labels in turn; evenly spaced images would be of some labels alone
    np.save(project / "data" / "prepared" / "calibration_labels.npy", np.tile(np.arange(10), 4))
    images, labels = context_of(object()).pick("calibration", 10)
    assert len(images) == 10
    assert sorted(labels.tolist()) == list(range(10))


def test_the_test_images_are_as_many_as_params_and_the_caller_allow(
    context_of: Callable[..., Context], params: Params
) -> None:
    assert context_of(object()).test_count() == COUNTS["test"]
    few = params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"test_images": 30})})
    context = context_of(object(), params=few)
    assert (context.test_count(), context.test_count(7)) == (30, 7)
    read = [images for images, _ in context.test_batches()]
    assert [len(images) for images in read] == [20, 10]
    assert (np.concatenate(read) == context.test_images(range(30))).all()


def test_resized_images_are_resized_once_for_all_evaluators(
    context_of: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = context_of(object())
    context = dataclasses.replace(usual, info=dataclasses.replace(usual.info, size=4), shared={})
    read = [np.concatenate([images for images, _ in context.test_batches()])]

    def no_more(*_: object) -> None:
        raise AssertionError("these images were resized before")

    monkeypatch.setattr(reading, "resized", no_more)
    read.append(context.test_images(range(COUNTS["test"])))
    assert read[0].shape == (COUNTS["test"], 1, 4, 4)
    np.testing.assert_array_equal(*read)


@pytest.mark.parametrize(
    ("count", "limit", "chosen"), [(3, None, [0, 1, 2]), (3, 5, [0, 1, 2]), (5, 3, [0, 2, 4]), (100, 2, [0, 99])]
)
def test_indices_are_spread_evenly_and_reach_both_ends(count: int, limit: int | None, chosen: list[int]) -> None:
    assert spread(count, limit).tolist() == chosen
