"""The feature network: a small classifier of the dataset, trained as its own stage into models/classifier.

Every sample-quality figure is computed on its features, and its labels say which class a generated image is of. For a
dataset with fewer than two labels it learns to tell the four right-angled rotations of an image apart (Gidaris et al.
2018). That gives features too; figures that need labels are then left out.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densitywatch.data.dataset import DatasetInfo, Split, open_split, read_info
from densitywatch.data.reading import (
    LARGEST_BY_DEFAULT,
    Images,
    images_at_once,
    images_within,
    reading_size,
    resized,
    size_of,
)
from densitywatch.devices import start_fabric, usable_precision
from densitywatch.errors import ModelError
from densitywatch.evaluation.measures.logistic_regression import RAW_PIXELS, LabelledFeatures, probe_curve
from densitywatch.files import whole_folder, write_whole
from densitywatch.models.common.map_sizes import halvings
from densitywatch.models.common.pixel_values import scale_images
from densitywatch.models.header import load_network
from densitywatch.models.storage import WEIGHTS, read_header, save_model
from densitywatch.params import ClassifierSettings, Params
from densitywatch.progress import say
from densitywatch.training.bookkeeping import note_training
from densitywatch.training.checkpoint import Progress
from densitywatch.training.identity import identity_of
from densitywatch.training.loop import Run, train, validate
from densitywatch.training.sharing import check_share

FOLDER = Path("models/classifier")
KIND = "classifier"


def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    """A 3 x 3 convolution, batch normalisation, ReLU."""
    return [nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


class FeatureNetwork(nn.Module):
    """Convolutions with batch normalisation and one hidden layer, whose activations are the features.

    Takes uint8 images (B, C, H, W), gives features (B, settings.features) and logits (B, classes). With fewer than two
    classes the network learns the four rotations.
    """

    def __init__(self, settings: ClassifierSettings, *, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.settings, self.channels, self.size, self.classes = settings, channels, size, classes
        self.rotations = classes < 2
        widths = [min(4, 2**i) * settings.channels for i in range(halvings(size) + 1)]
        side = -(-size // 2)
        layers = block(4 * channels, widths[0], stride=1)
        for i, o in pairwise(widths[:-1]):
            layers += block(i, o, stride=2)
            side = -(-side // 2)
        layers += block(widths[-2], widths[-1], stride=1)
        self.convolutions = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(settings.dropout))
        self.hidden = nn.Linear(widths[-1] * side**2, settings.features)
        self.out = nn.Linear(settings.features, 4 if self.rotations else classes)

    def features(self, x: Tensor) -> Tensor:
        """The hidden layer's activations, (B, settings.features)."""
        odd = self.size % 2
        # 2 x 2 pixels become 4 channels: a quarter of the positions, the same information
        images = F.pixel_unshuffle(F.pad(scale_images(x), (0, odd, 0, odd)), 2)
        return F.relu(self.hidden(self.convolutions(images.contiguous(memory_format=torch.channels_last))))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the labels (B, classes), or of the four rotations (B, 4) where there are no labels."""
        logits: Tensor = self.out(self.features(x))
        return logits

    def loss(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """(cross-entropy in nats, to minimise; accuracy, to log). Images without a label (-1) are left out."""
        if self.rotations:
            labels = torch.arange(len(x), device=x.device) % 4
            x = torch.stack([torch.rot90(image, int(k), (1, 2)) for image, k in zip(x, labels, strict=True)])
        if labels is None:
            raise ValueError("the classifier learns from labels; pass labels")
        logits = self(x)
        known = labels >= 0
        loss = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum") / known.sum().clamp(min=1)
        right = (logits.argmax(1) == labels)[known].float().mean() if known.any() else loss.new_zeros(())
        return loss, {"accuracy": right}


def train_classifier(params: Params, root: Path) -> Path:
    """Train the feature network on data/prepared and write models/classifier and metrics/classifier.json.

    `accuracy` is measured on the test images; `task` says whether it is of labels or of rotations. The linear probe on
    raw pixels is measured here too, once for all models. An interrupted training continues when it is started again.
    On several devices only the first process writes.

    Raises TrainingDiverged when the loss is no longer a number, DataError when data/prepared is missing.
    """
    prepared = root / "data" / "prepared"
    info = read_info(prepared)
    size = reading_size(params.classifier.size, info.size)
    train_split, validation, test = (open_split(prepared, split, size) for split in ("train", "validation", "test"))
    settings, training = params.classifier.settings, params.classifier.training
    fabric = start_fabric(params.device, training.precision)
    check_share(KIND, training.batch_size, fabric)
    torch.manual_seed(params.seed)
    network = FeatureNetwork(settings, channels=info.channels, size=size, classes=len(info.class_names))
    network = network.to(memory_format=torch.channels_last)
    identity = identity_of(
        params.classifier.model_dump(),
        params,
        network,
        fabric,
        data_digest=info.digest,
        precision=usable_precision(training.precision or params.device.precision, params.device),
        compiled=False,
    )
    folder = root / "checkpoints" / KIND
    run = Run(name=KIND, seed=params.seed, folder=folder, identity=identity)
    best, progress = train(fabric, network, train_split, validation, training, run)
    limit = {"validation_images": params.evaluate.test_images}
    on_device = fabric.to_device(best)
    accuracy = validate(on_device, test, training.model_copy(update=limit), params.seed, fabric)["accuracy"]
    if fabric.is_global_zero:
        pixels = {} if network.rotations else pixel_curve(train_split, validation, test, params)
        task = "rotations" if network.rotations else "labels"
        _write_classifier(best, progress, info, {"task": task, "accuracy": round(accuracy, 6)}, pixels, root)
        shutil.rmtree(folder, ignore_errors=True)
    fabric.barrier()  # the other processes wait until the folder is there
    return root / FOLDER


def _write_classifier(
    best: nn.Module,
    progress: Progress,
    info: DatasetInfo,
    measured: dict[str, Any],
    pixels: dict[int, float],
    root: Path,
) -> None:
    """models/classifier, metrics/classifier.json and the training's time.

    measured: `task` and `accuracy`. pixels: the linear probe's curve on raw pixels.
    """
    facts = {
        **measured,
        **{f"raw_pixel_probe_{n}": round(value, 6) for n, value in pixels.items()},
        "parameters": sum(p.numel() for p in best.parameters()),
    }
    with whole_folder(root / FOLDER) as out:
        save_model(best, out, kind=KIND, class_names=info.class_names, about={"data_digest": info.digest})
        write_whole(out / RAW_PIXELS, json.dumps(pixels) + "\n")
        history = {"columns": list(progress.history[-1]), "rows": progress.history}
        write_whole(out / "history.json", json.dumps(history) + "\n")
    write_whole(root / "metrics" / f"{KIND}.json", json.dumps(facts, indent=2, sort_keys=True) + "\n")
    note_training(root / FOLDER / WEIGHTS, KIND, root, {"train_seconds": round(progress.seconds, 3)})
    say(f"{KIND}: {facts['accuracy']:.2%} of the test images' {facts['task']} -> {root / FOLDER}")


def pixel_curve(train: Split, validation: Split, test: Split, params: Params) -> dict[int, float]:
    """The linear probe on raw pixels, at most 32 a side. Probes on models' features are compared with it.

    Of each split as many of the first labelled images as fit into memory, which are float32 numbers here.
    """

    def flat(split: Split, limit: int | None = None) -> LabelledFeatures:
        split = split.at(min(split.images.shape[-1], LARGEST_BY_DEFAULT))
        known = np.flatnonzero(split.labels[:limit] >= 0)
        known = known[: images_within(len(known), 4 * math.prod(split.images.shape[1:]))]
        return split.images[known].reshape(len(known), -1).astype(np.float32), split.labels[known]

    return probe_curve(flat(train), flat(validation), flat(test, params.evaluate.test_images), params.evaluate.probe)


def load_classifier(folder: Path, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The feature network in `folder`, in eval mode on `device`. Raises ModelError when `folder` does not hold one."""
    header: dict[str, Any] = read_header(folder)
    if header["kind"] != KIND:
        raise ModelError(
            f"{folder}: holds a {header['kind']}, not the feature network; run `dvc repro train_classifier`"
        )
    network: FeatureNetwork = load_network(folder / WEIGHTS, header, ClassifierSettings, FeatureNetwork)
    return network.to(device)


@torch.no_grad()
def features_of(network: FeatureNetwork, images: Images, batch_size: int = 500) -> Tensor:
    """Features (N, D), on the CPU, of uint8 images (N, C, H, W) of any size, read a batch at a time."""
    return torch.cat([network.features(x).cpu() for x in batches_for(network, images, batch_size)])


@torch.no_grad()
def classes_of(network: FeatureNetwork, images: Images, batch_size: int = 500) -> np.ndarray:
    """The class (N,) that `network` gives each uint8 image (N, C, H, W) of any size."""
    return np.concatenate([network(x).argmax(1).cpu().numpy() for x in batches_for(network, images, batch_size)])


def batches_for(network: FeatureNetwork, images: Images, batch_size: int) -> Iterator[Tensor]:
    """The images at the network's size and on its device."""
    device, size = network.out.weight.device, size_of(network, images.shape[-1])
    step = images_at_once(batch_size, size)
    for start in range(0, len(images), step):
        yield torch.from_numpy(resized(np.array(images[start : start + step]), size)).to(device)
