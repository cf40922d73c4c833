"""One file a model; `MODELS` maps a kind to its class, and a model's folder holds `model.safetensors`.

A model file `<kind>.py` defines `Settings` (a frozen pydantic model) and names its class in `MODEL`. The class is made
by `MODEL(settings, channels, size, classes)` (`classes` = number of labels, 0 where there are none) and offers what it
can do and nothing more:

    loss(x, labels) -> (scalar to minimise, dict of scalars to log)     likelihood and reconstruction models
    generator_loss(n, labels), discriminator_loss(x, labels)             adversarial models
    log_prob(x, labels=None) -> (B,) nats     log_prob_map(x, labels=None) -> (B, H, W) nats     exact densities
    elbo(x), importance_bound(x, samples)     bounds, (B,) nats
    sample(n, labels=None, generator=None) -> uint8 (n, C, H, W)
    encode(x) -> (B, D)     decode(z) -> uint8     reconstruct(x) -> uint8

Images are uint8 (B, C, H, W) at every public boundary.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from densitywatch.errors import ModelError
from densitywatch.files import whole_file
from densitywatch.models.header import FORMAT, check, check_header, check_tensors, load_network, read_metadata, shown
from densitywatch.params import ModelBlock, model_settings

__all__ = [
    "WEIGHTS",
    "build_model",
    "check",
    "check_tensors",
    "find_models",
    "load_model_folder",
    "load_network",
    "read_header",
    "save_model",
    "shown",
]

WEIGHTS = "model.safetensors"


def __getattr__(name: str) -> Any:
    if name == "MODELS":
        return find_models()
    raise AttributeError(f"module 'densitywatch.models' has no attribute {name!r}")


def find_models() -> dict[str, type[nn.Module]]:
    """Every model by its kind: the files of this folder that name a `MODEL`."""
    found = {}
    for file in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{file.name}")
        if hasattr(module, "MODEL"):
            found[file.name] = module.MODEL
    return found


def build_model(block: ModelBlock, *, channels: int, size: int, classes: int) -> nn.Module:
    """A freshly initialised model of a params block; initial weights follow torch's global seed."""
    settings = model_settings(block)
    module = importlib.import_module(f"{__name__}.{block.kind}")
    model: nn.Module = module.MODEL(settings, channels=channels, size=size, classes=classes)
    return model


def save_model(
    model: Any, folder: Path | str, *, kind: str, class_names: tuple[str, ...], about: Mapping[str, Any]
) -> Path:
    """Write `folder/model.safetensors`, whole or not at all; all that `load_model` needs stands in its header.

    `about` is what a reader should know beside the settings: data digest, steps, validation figure.
    """
    header = {
        "kind": kind,
        "settings": model.settings.model_dump(mode="json"),
        "channels": model.channels,
        "size": model.size,
        # whoever gives a file to the model brings it to this size first, as `prepare` did
        **({"data_size": model.data_size} if getattr(model, "data_size", model.size) != model.size else {}),
        "class_names": list(class_names),
        **about,
    }
    target = Path(folder) / WEIGHTS
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # one key only: safetensors writes several in an order that changes from run to run, and the bytes must not
    metadata = {"densitywatch": json.dumps({"format": FORMAT, **header}, sort_keys=True)}
    with whole_file(target) as beside:
        safetensors.torch.save_file(tensors, beside, metadata=metadata)
    return target


def read_header(folder: Path | str) -> dict[str, Any]:
    """The header of a model's folder: kind, settings, channels, size, class_names and what training noted.

    Raises ModelError when the file is missing, not whole, or no densitywatch model.
    """
    path = Path(folder) / WEIGHTS
    metadata = read_metadata(path, f"train it with `dvc repro train@{Path(folder).name}`")
    return check_header(path, metadata.get("densitywatch"))


def load_model_folder(folder: Path | str) -> nn.Module:
    """The model in `folder`, in eval mode on the CPU, with `class_names` and `header` as attributes.

    Raises ModelError when the folder holds no whole model or its weights do not fit its settings.
    """
    header = read_header(folder)
    kind = header["kind"]
    if not kind.isidentifier():
        raise ModelError(f"{folder}: {kind!r} is no model kind")
    try:
        module = importlib.import_module(f"{__name__}.{kind}")
        settings_type, network_type = module.Settings, module.MODEL
    except (ModuleNotFoundError, AttributeError):
        raise ModelError(f"{folder}: kind {kind!r} is not among this version's models") from None
    model = load_network(Path(folder) / WEIGHTS, header, settings_type, network_type)
    model.class_names = tuple(header["class_names"])
    model.header = header
    loaded: nn.Module = model
    return loaded
