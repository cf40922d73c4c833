"""A model on disk: built from params, saved with its settings, loaded and checked."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from pydantic import BaseModel, ValidationError
from torch import nn

from densitywatch import models
from densitywatch.errors import ModelError, ParamsError
from densitywatch.files import whole_file
from densitywatch.models.header import FORMAT, check_header, load_network, read_metadata
from densitywatch.params import ModelBlock, Params, first_problem

WEIGHTS = "model.safetensors"


def find_models() -> dict[str, type[nn.Module]]:
    """Every model by its kind: the files of densitywatch/models that have a `MODEL`."""
    found = {}
    for file in pkgutil.iter_modules(models.__path__):
        module = importlib.import_module(f"{models.__name__}.{file.name}")
        if hasattr(module, "MODEL"):
            found[file.name] = module.MODEL
    return found


def check_settings(params: Params, path: Path | str) -> None:
    """Check the settings of each model; this imports the models' files. Raises ParamsError as load_params does."""
    for name, block in params.models.items():
        try:
            model_settings(block)
        except ParamsError as error:
            raise ParamsError(f"{path}: models.{name}.{error}") from None


def model_settings(block: ModelBlock) -> BaseModel:
    """The block's settings, checked by `Settings` of the model's file.

    Raises ParamsError when there is no such file or a setting does not fit.
    """
    module = f"{models.__name__}.{block.kind}"
    try:
        settings_type = importlib.import_module(module).Settings
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ParamsError(f"kind: '{block.kind}' has no file in densitywatch/models") from None
    except AttributeError:
        raise ParamsError(f"kind: '{block.kind}' is no model: its file has no Settings") from None
    try:
        settings: BaseModel = settings_type.model_validate(block.settings)
    except ValidationError as error:
        raise ParamsError(f"settings.{first_problem(error)}") from None
    return settings


def build_model(block: ModelBlock, *, channels: int, size: int, classes: int) -> nn.Module:
    """A new model of a params block; its initial weights depend on torch's global seed."""
    settings = model_settings(block)
    module = importlib.import_module(f"{models.__name__}.{block.kind}")
    model: nn.Module = module.MODEL(settings, channels=channels, size=size, classes=classes)
    return model


def save_model(
    model: Any, folder: Path | str, *, kind: str, class_names: tuple[str, ...], about: Mapping[str, Any]
) -> Path:
    """Write `folder/model.safetensors`, whole or not at all; its header has all that `load_model` needs.

    `about`: more for readers of the header, such as data digest, steps and validation figure.
    """
    header = {
        "kind": kind,
        "settings": model.settings.model_dump(mode="json"),
        "channels": model.channels,
        "size": model.size,
        # an image file is brought to this size first, as `prepare` did, and then to the model's
        **({"data_size": model.data_size} if getattr(model, "data_size", model.size) != model.size else {}),
        "class_names": list(class_names),
        **about,
    }
    target = Path(folder) / WEIGHTS
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # one key: safetensors writes several keys in an order that changes from run to run, and the bytes must be the same
    metadata = {"densitywatch": json.dumps({"format": FORMAT, **header}, sort_keys=True)}
    with whole_file(target) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata=metadata)
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
        module = importlib.import_module(f"{models.__name__}.{kind}")
        settings_type, network_type = module.Settings, module.MODEL
    except (ModuleNotFoundError, AttributeError):
        raise ModelError(f"{folder}: kind {kind!r} is not among this version's models") from None
    model = load_network(Path(folder) / WEIGHTS, header, settings_type, network_type)
    model.class_names = tuple(header["class_names"])
    model.header = header
    loaded: nn.Module = model
    return loaded
