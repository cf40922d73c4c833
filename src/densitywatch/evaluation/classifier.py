"""The feature network: a small classifier of the dataset, trained as its own stage into models/classifier.

Its features are the space of every sample-quality figure, and its labels decide of which class a generated image is. For a
dataset without at least two labels it learns to tell the four right-angled rotations of an image apart (Gidaris et al. 2018), which
gives features all the same; what needs labels is then left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densitywatch.data import open_split, read_info
from densitywatch.errors import ModelError
from densitywatch.files import whole_folder, write_whole
from densitywatch.models import WEIGHTS, read_header, save_model
from densitywatch.models.layers import scale_images
from densitywatch.params import ClassifierSettings, Params
from densitywatch.progress import say

FOLDER = Path("models/classifier")
KIND = "classifier"


class FeatureNetwork(nn.Module):
    """Three convolutions with batch normalisation; uint8 images (B, C, H, W) to features (B, 4 * channels) and logits.

    classes: 2 or more labels to tell apart; below that the network learns rotations.
    """

    def __init__(self, settings: ClassifierSettings, *, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.settings, self.channels, self.size, self.classes = settings, channels, size, classes
        self.rotations = classes < 2
        c = settings.channels
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, c, 3, padding=1, bias=False),
            nn.BatchNorm2d(c),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(c, 2 * c, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * c),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(2 * c, 4 * c, 3, padding=1, bias=False),
            nn.BatchNorm2d(4 * c),
            nn.ReLU(),
        )
        self.out = nn.Linear(4 * c, 4 if self.rotations else classes)

    @property
    def num_features(self) -> int:
        """The width of the feature space."""
        return self.out.in_features

    def features(self, x: Tensor) -> Tensor:
        """The mean over the image of the last convolution's activations, (B, num_features)."""
        images = scale_images(x).contiguous(memory_format=torch.channels_last)
        features: Tensor = self.convolutions(images).mean((2, 3))
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the labels (of the rotations, where there are no labels), (B, classes)."""
        logits: Tensor = self.out(F.dropout(self.features(x), self.settings.dropout, self.training))
        return logits

    def loss(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy in nats, to minimise; images without a label (-1) are passed over."""
        if self.rotations:
            labels = torch.arange(len(x), device=x.device) % 4
            x = torch.stack([torch.rot90(image, int(k), (1, 2)) for image, k in zip(x, labels, strict=True)])
        if labels is None:
            raise ValueError("the classifier learns from labels: pass labels")
        logits = self(x)
        known = labels >= 0
        loss = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum") / known.sum().clamp(min=1)
        right = (logits.argmax(1) == labels)[known].float().mean() if known.any() else torch.zeros(())
        return loss, {"accuracy": right}


def train_classifier(params: Params, root: Path) -> Path:
    """Train the feature network on data/prepared and write models/classifier and metrics/classifier.json.

    `accuracy` there is that on the test images, of labels or, where `task` says so, of rotations. Interrupted, it goes on
    when started again.

    Raises TrainingDiverged when the loss is no longer a number, DataError when data/prepared is missing.
    """
    from densitywatch.training import start_fabric
    from densitywatch.training.loop import train

    prepared = root / "data" / "prepared"
    info = read_info(prepared)
    train_split, validation, test = (open_split(prepared, split) for split in ("train", "validation", "test"))
    settings, training = params.classifier.settings, params.classifier.training
    fabric = start_fabric(params.device)
    torch.manual_seed(params.seed)
    network = FeatureNetwork(settings, channels=info.channels, size=info.size, classes=len(info.class_names))
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    identity = json.dumps([params.classifier.model_dump(), params.seed, info.digest, torch.__version__], sort_keys=True)
    folder = root / "checkpoints" / KIND
    best, progress = train(
        fabric,
        network,
        train_split,
        validation,
        training,
        name=KIND,
        seed=params.seed,
        folder=folder,
        identity=identity,
    )
    limit = params.evaluate.test_images
    images, labels = np.asarray(test.images[:limit]), test.labels[:limit]
    with torch.no_grad():
        sums = [
            (
                best.loss(torch.from_numpy(images[i : i + 500]), torch.from_numpy(labels[i : i + 500])),
                len(images[i : i + 500]),
            )  # type: ignore[operator]
            for i in range(0, len(images), 500)
        ]
    accuracy = sum(float(logs["accuracy"]) * n for (_, logs), n in sums) / len(images)
    facts = {
        "task": "rotations" if network.rotations else "labels",
        "accuracy": round(accuracy, 6),
        "parameters": sum(p.numel() for p in best.parameters()),
        "train_seconds": round(progress.seconds, 1),
    }
    with whole_folder(root / FOLDER) as out:
        save_model(best, out, kind=KIND, class_names=info.class_names, about={"data_digest": info.digest})
        write_whole(
            out / "history.json", json.dumps({"columns": list(progress.history[-1]), "rows": progress.history}) + "\n"
        )
    write_whole(root / "metrics" / f"{KIND}.json", json.dumps(facts, indent=2, sort_keys=True) + "\n")
    say(f"{KIND}: {facts['accuracy']:.2%} of the test images' {facts['task']} -> {root / FOLDER}")
    return root / FOLDER


def load_classifier(folder: Path, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The feature network in `folder`, in eval mode on `device`. Raises ModelError when it is missing or not one."""
    header: dict[str, Any] = read_header(folder)
    if header["kind"] != KIND:
        raise ModelError(
            f"{folder}: holds a {header['kind']}, not the feature network; run `dvc repro train_classifier`"
        )
    network = FeatureNetwork(
        ClassifierSettings.model_validate(header["settings"]),
        channels=header["channels"],
        size=header["size"],
        classes=len(header["class_names"]),
    )
    network.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
    return network.to(device).eval()


@torch.no_grad()
def features_of(network: FeatureNetwork, images: np.ndarray, batch_size: int = 500) -> Tensor:
    """Features (N, num_features) of uint8 images (N, C, H, W), on the CPU; reads a batch at a time."""
    device = network.out.weight.device
    parts = [
        network.features(torch.from_numpy(np.array(images[i : i + batch_size])).to(device)).cpu()
        for i in range(0, len(images), batch_size)
    ]
    return torch.cat(parts)
