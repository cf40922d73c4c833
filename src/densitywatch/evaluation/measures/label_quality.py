"""Whether a conditional model's samples show the label asked for (Shmelkov et al. 2018, "How good is my GAN?")."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from densitywatch.data.dataset import Split
from densitywatch.data.reading import Images, images_within
from densitywatch.devices import start_fabric
from densitywatch.evaluation.measures.context import Context, Result
from densitywatch.evaluation.measures.feature_network import FeatureNetwork, classes_of
from densitywatch.evaluation.measures.sample_quality import drawn, feature_network, generated, training_labels
from densitywatch.models.offers import PixelwiseDensity, Sampler, takes_labels
from densitywatch.params import TrainingParams
from densitywatch.training.loop import Run, train

CHECKPOINTS = 10
"""How often the student classifier is validated; the best one is kept."""


def label_quality(context: Context) -> Result | None:
    """GAN-test and GAN-train accuracy of a conditional model's samples.

    `gan_test_accuracy`: a classifier of real images (models/classifier) labels the samples. The figure is the share
    that gets the label asked for. It is low when samples are poor or of the wrong label.

    `gan_train_accuracy`: a student classifier is trained on samples alone, as many as there are training images. The
    figure is the share of real test images that it labels right. It is low, too, when the samples lack variety. Models
    that draw pixel by pixel are slow, so their student learns from the samples of `gan_test_accuracy`. The checkpoint
    that does best on real validation images counts: later a student learns what only samples have.

    Model: `sample(n, labels, generator)` with settings.conditional or `conditional`.
    """
    asked_for = getattr(getattr(context.model, "settings", None), "conditional", True)
    if asked_for and getattr(context.model, "conditional", None) is False and not context.info.class_names:
        return Result(
            {},
            notes=["the dataset has no labels, so this model was trained without them; figures of labels are left out"],
        )
    if not isinstance(context.model, Sampler) or not takes_labels(context.model):
        return None
    if context.classifier is None or len(context.info.class_names) < 2:
        return Result({}, notes=["GAN-train and GAN-test accuracy were left out: they need at least two labels"])
    images, labels = generated(context, context.model)
    if labels is None:
        return None
    metrics: dict[str, float | int | str] = {"gan_test_accuracy": share_right(feature_network(context), images, labels)}
    steps = context.params.evaluate.quality.label_training_steps
    if not isinstance(context.model, PixelwiseDensity):  # fast enough for as many samples as training images
        labels = training_labels(context, images_within(context.info.counts["train"], context.dimensions))
        images = drawn(context, context.model, len(labels), labels)
    student = train_on(images, labels, len(context.info.class_names), steps, context)
    real, known = context.pick("test", context.params.evaluate.test_images)
    metrics["gan_train_accuracy"] = share_right(student, real, known)
    metrics["gan_train_images"] = len(images)
    note = f"GAN-train accuracy is that of a classifier trained for at most {steps:,} steps on {len(images):,} samples"
    return Result(metrics, notes=[note])


def train_on(images: np.ndarray, labels: np.ndarray, classes: int, steps: int, context: Context) -> FeatureNetwork:
    """A new classifier with the settings of params.classifier, trained for `steps` steps on the given images alone.

    Returns the checkpoint with the least loss on the validation images.
    """
    params = context.params
    # with the number of threads of params: two stages that each use every thread mostly wait for each other
    one = params.device.model_copy(
        update={"accelerator": "cpu" if context.device.type == "cpu" else "auto", "devices": 1}
    )
    fabric = start_fabric(one, params.classifier.training.precision)
    settings = params.classifier
    training: TrainingParams = settings.training.model_copy(
        update={
            "steps": steps,
            "warmup_steps": min(settings.training.warmup_steps, steps),
            "evaluate_every": max(1, steps // CHECKPOINTS),
            "checkpoint_every": steps,
        }
    )
    # at the feature network's size, so that the accuracies of the two compare
    size = feature_network(context).size
    split = Split(images=images, labels=labels.astype(np.int64)).at(size)
    torch.manual_seed(params.seed)
    network: nn.Module = FeatureNetwork(settings.settings, channels=context.info.channels, size=size, classes=classes)
    with tempfile.TemporaryDirectory() as folder, torch.enable_grad():
        network, _ = train(
            fabric,
            network.to(memory_format=torch.channels_last),
            split,
            context.split("validation").at(size),
            training,
            Run(name="classifier on samples", seed=params.seed, folder=Path(folder), identity=""),
        )
    assert isinstance(network, FeatureNetwork)
    return network.to(context.device).eval()


@torch.no_grad()
def share_right(network: FeatureNetwork, images: Images, labels: np.ndarray, batch_size: int = 500) -> float:
    """The share of uint8 images (N, C, H, W) that `network` labels right; images without a label (-1) are left out."""
    known = labels >= 0
    guesses = classes_of(network, images, batch_size)
    return float((guesses == labels)[known].mean())
