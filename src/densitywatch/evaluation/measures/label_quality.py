"""Whether a conditional model's samples are of the label that was asked for (Shmelkov et al. 2018, "How good is my
GAN?").
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from densitywatch.data.dataset import Split
from densitywatch.data.reading import Images, images_within
from densitywatch.evaluation.measures.context import Context, Result, takes_labels
from densitywatch.evaluation.measures.feature_network import FeatureNetwork, classes_of
from densitywatch.evaluation.measures.sample_quality import draw, feature_network, generated, training_labels
from densitywatch.params import TrainingParams

CHECKPOINTS = 10


def label_quality(context: Context) -> Result | None:
    """GAN-test and GAN-train accuracy of a conditional model's samples.

    `gan_test_accuracy`: the share of samples that a classifier of real images (models/classifier) gives the label asked
    for; low when samples are poor or of the wrong label. `gan_train_accuracy`: the share of real test images that a
    classifier trained on nothing but samples gets right, as many as there are training images (Shmelkov et al. 2018; of
    models that draw pixel by pixel, the same samples as above); low, too, when the samples lack variety. Of the student
    classifier the checkpoint counts that does best on real validation images: after it a student learns what tells
    samples from images.

    Model: `sample(n, labels, generator)` with settings.conditional or `conditional`.
    """
    asked_for = getattr(getattr(context.model, "settings", None), "conditional", True)
    if asked_for and getattr(context.model, "conditional", None) is False:
        return Result(
            {},
            notes=["the dataset has no labels, so this model was trained without them; what needs labels is left out"],
        )
    if not hasattr(context.model, "sample") or not takes_labels(context.model):
        return None
    if context.classifier is None or len(context.info.class_names) < 2:
        return Result({}, notes=["GAN-train and GAN-test accuracy were left out: they need at least two labels"])
    images, labels = generated(context)
    if labels is None:
        return None
    metrics = {"gan_test_accuracy": share_right(feature_network(context), images, labels)}
    steps = context.params.evaluate.quality.label_training_steps
    if not hasattr(context.model, "log_prob_map"):  # as many samples as there are training images, as GAN-train asks
        labels = training_labels(context, images_within(context.info.counts["train"], context.dimensions))
        parts = draw(context.model, len(labels), labels, context.generator(), context.batch_size)
        images = np.concatenate(list(parts))
    student = train_on(images, labels, len(context.info.class_names), steps, context)
    real, known = context.pick("test", context.params.evaluate.test_images)
    metrics["gan_train_accuracy"] = share_right(student, real, known)
    note = f"GAN-train accuracy is that of a classifier trained for at most {steps:,} steps on {len(images):,} samples"
    return Result(dict(metrics), notes=[note])


def train_on(images: np.ndarray, labels: np.ndarray, classes: int, steps: int, context: Context) -> FeatureNetwork:
    """A fresh classifier of the settings of params.classifier, trained for `steps` steps on the given images alone.

    The checkpoint of least loss on the validation images is the one returned.
    """
    from densitywatch.devices import start_fabric
    from densitywatch.training.loop import Run, train

    params = context.params
    # a slot's share of the threads and no more: two stages with all of them wait for each other most of the time
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
    # at the feature network's size, so that its accuracy is what this one's compares with
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
    """The share of uint8 images (N, C, H, W) to which `network` gives their label; images without one (-1) are passed
    over.
    """
    known = labels >= 0
    guesses = classes_of(network, images, batch_size)
    return float((guesses == labels)[known].mean())
