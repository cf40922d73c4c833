"""A model file's header and the shapes of its tensors, checked before a network takes any memory.

A model file may come from anyone, and its settings decide how large the network is. So the network is first made on
torch's meta device, where tensors have shapes and no memory, and compared with the shapes in the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor, nn

from densitywatch.errors import ModelError
from densitywatch.params import first_problem

FORMAT = "1"
MAX_SIZE = 4096
MAX_CLASSES = 100_000
FLOATS = ("F64", "F32", "F16", "BF16")

Checked = TypeVar("Checked", bound=BaseModel)


class Header(BaseModel):
    """The entries of every header. Training adds more, on which no network depends."""

    model_config = ConfigDict(strict=True, frozen=True)

    kind: str = Field(min_length=1, max_length=64)
    settings: dict[str, Any]
    channels: int
    size: int = Field(ge=1, le=MAX_SIZE)
    class_names: tuple[str, ...] = Field(max_length=MAX_CLASSES)

    @field_validator("channels")
    @classmethod
    def _grey_or_colour(cls, channels: int) -> int:  # Literal[1, 3] would let `true` and 3.0 pass
        if channels not in (1, 3):
            raise ValueError("must be 1 or 3")
        return channels


def read_metadata(path: Path, advice: str) -> dict[str, str]:
    """The metadata of a safetensors file. Raises ModelError; `advice`: what to do where there is no file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except FileNotFoundError:
        raise ModelError(f"{path}: no such model; {advice}") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a whole safetensors file ({error}); train or download it again") from None


def check_header(path: Path, text: str | None) -> dict[str, Any]:
    """The header from its JSON `text`. Raises ModelError where it is none, or an entry has a wrong type."""
    try:
        header = json.loads(text or "")
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise ModelError(f"{path}: has no densitywatch header; this file was not written by densitywatch")
    if header.get("format") != FORMAT:
        raise ModelError(f"{path}: format {header.get('format')!r:.40} is not the {FORMAT!r} this version reads")
    check(Header, {key: header[key] for key in Header.model_fields if key in header}, f"{path}: header: ")
    return header


def check(form: type[Checked], values: Mapping[str, Any], where: str) -> Checked:
    """`values`, which were read from JSON, as `form`, with the exact types: "8" is no number.

    Raises ModelError, a sentence that begins with `where`.
    """
    try:
        return form.model_validate_json(json.dumps(values, allow_nan=False), strict=True)
    except ValidationError as error:
        raise ModelError(where + shown(first_problem(error))) from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where}a value that JSON cannot hold ({shown(str(error))})") from None


def load_network(
    path: Path, header: Mapping[str, Any], settings_type: type[BaseModel], network_type: Callable[..., Any]
) -> Any:
    """The network that the header describes, with the file's weights, in eval mode on the CPU.

    Raises ModelError when a setting is of a wrong type or out of range, or the file's tensors are not the network's.
    """
    settings = check(settings_type, header["settings"], f"{path.parent}: settings.")
    arguments = {"channels": header["channels"], "size": header["size"], "classes": len(header["class_names"])}
    try:
        with torch.device("meta"):
            expected: dict[str, Tensor] = network_type(settings, **arguments).state_dict()
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise ModelError(f"{path.parent}: its settings make no network ({shown(str(error))})") from None
    try:
        check_tensors(path, expected)
        network: nn.Module = network_type(settings, **arguments)
        network.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise _misfit(path, str(error)) from None
    return network.eval()


def check_tensors(path: Path, expected: Mapping[str, Tensor]) -> None:
    """Compare names, shapes and kinds of numbers with those of the file; no data is read.

    Raises ModelError, naming the first that differs.
    """
    with safetensors.safe_open(path, framework="pt") as file:
        names = set(file.keys())
        found = {name: file.get_slice(name) for name in names & expected.keys()}
        shapes = {name: (list(part.get_shape()), part.get_dtype() in FLOATS) for name, part in found.items()}
    for name in sorted(names ^ expected.keys()):
        raise _misfit(path, f"the tensor {name!r:.100} is in the {'file' if name in names else 'network'} alone")
    for name, tensor in expected.items():
        shape, is_float = shapes[name]
        if shape != list(tensor.shape):
            raise _misfit(path, f"{name} has the shape {shape} in the file and {list(tensor.shape)} by the settings")
        if is_float != tensor.is_floating_point():
            raise _misfit(path, f"{name} has numbers of another kind")


def _misfit(path: Path, reason: str) -> ModelError:
    return ModelError(f"{path.parent}: weights and settings do not fit: {shown(reason)}")


def shown(text: str) -> str:
    """Text from a file, safe for a message: one line, not long, no control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))[:300]
