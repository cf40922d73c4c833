"""Whether samples show the label asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from densitywatch.evaluation.measures.context import Context
from densitywatch.evaluation.measures.label_quality import label_quality
from densitywatch.params import Params
from tests.evaluation.standins import Shows


def test_samples_of_the_label_asked_for_pass_gan_test_and_samples_of_another_do_not(
    with_classifier: tuple[Params, Path], context_of: Callable[..., Context]
) -> None:
    params, folder = with_classifier
    prepared = folder.parents[1] / "data" / "prepared"
    images, labels = np.load(prepared / "train.npy"), np.load(prepared / "train_labels.npy")
    quality = params.evaluate.quality.model_copy(update={"images": 60, "label_training_steps": 60})
    params = params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"quality": quality})})
    right = label_quality(context_of(Shows(images, labels), params=params, classifier=folder))
    wrong = label_quality(context_of(Shows(images, (labels + 1) % 10), params=params, classifier=folder))
    assert right is not None
    assert wrong is not None
    assert float(right.metrics["gan_test_accuracy"]) > 0.8
    assert float(wrong.metrics["gan_test_accuracy"]) < 0.2
    # a student of samples under wrong labels learns those
    assert float(right.metrics["gan_train_accuracy"]) > 0.7
    assert float(wrong.metrics["gan_train_accuracy"]) < 0.2
    assert label_quality(context_of(torch.nn.Identity(), params=params, classifier=folder)) is None


def test_only_a_dataset_without_labels_is_said_to_have_none(context_of: Callable[..., Context]) -> None:
    pyramid = Shows(np.zeros((4, 1, 8, 8), np.uint8))  # no settings say whether it takes labels: it takes none
    context = context_of(pyramid)
    assert label_quality(context) is None
    unlabelled = label_quality(dataclasses.replace(context, info=dataclasses.replace(context.info, class_names=())))
    assert unlabelled is not None
    assert unlabelled.notes[0].startswith("the dataset has no labels")
