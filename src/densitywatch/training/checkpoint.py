"""The state of a training run in one safetensors file; a run that goes on from it ends with the same bits."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.optim import Optimizer

from densitywatch.files import whole_file

STATE = "state.safetensors"
KINDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""safetensors' names of the types of a network's tensors."""


@dataclass
class Progress:
    """The part of a run's state that is not tensors."""

    step: int = 0
    best_step: int = 0
    best_validation: float | None = None
    seconds: float = 0.0
    run_id: str | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    """Of each figure, over the `summed` steps since the last row."""
    summed: int = 0
    warnings: list[str] = field(default_factory=list)


def optimizer_tensors(optimizers: dict[str, Optimizer]) -> dict[str, Tensor]:
    """The moments of every optimiser by name, `optimizer/<name>/<parameter index>/<key>`."""
    return {
        f"optimizer/{name}/{index}/{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for name, optimizer in optimizers.items()
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


def restore_optimizers(optimizers: dict[str, Optimizer], tensors: dict[str, Tensor]) -> None:
    for name, optimizer in optimizers.items():
        whole = optimizer.state_dict()
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        prefix = f"optimizer/{name}/"
        for key, tensor in tensors.items():
            if key.startswith(prefix):
                index, item = key.removeprefix(prefix).split("/")
                parameter = parameters[int(index)]
                # files are contiguous; moments of a kernel lie in memory as the kernel does, else each step is slower
                kernel = tensor.ndim == 4 and tensor.shape == parameter.shape
                kept = torch.empty_like(parameter).copy_(tensor) if kernel else tensor
                state.setdefault(int(index), {})[item] = kept
        optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})


def save_state(folder: Path, identity: str, tensors: dict[str, Tensor], progress: Progress) -> None:
    """Write the state whole or not at all: a run that is killed while writing finds the state before."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"identity": identity, "progress": json.dumps(vars(progress))}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole_file(folder / STATE) as temporary:
        safetensors.torch.save_file(contiguous, temporary, metadata=metadata)


def load_state(
    folder: Path,
    identity: str,
    expected: Mapping[str, Tensor] | None = None,
    optimizers: Mapping[str, Optimizer] | None = None,
) -> tuple[dict[str, Tensor], Progress] | None:
    """The state in `folder`; None when there is none, it cannot be read, or it has another identity.

    With `expected` and `optimizers` also None when its tensors have other names, shapes or types, which are compared
    before any data is read.
    """
    path = folder / STATE
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = file.metadata() or {}
            if metadata.get("identity") != identity:
                return None
            TypeAdapter(Progress).validate_json(metadata["progress"], strict=True)
            if expected is not None and not _fits(file, expected, optimizers or {}):
                return None
            progress = Progress(**json.loads(metadata["progress"]))  # as written: checked ones turn a step into 20.0
            return {name: file.get_tensor(name) for name in file.keys()}, progress  # noqa: SIM118
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError, RecursionError):
        return None


def _fits(file: Any, expected: Mapping[str, Tensor], optimizers: Mapping[str, Optimizer]) -> bool:
    """Whether the file has the expected tensors, and no others but what the optimisers keep for each parameter."""
    found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    if not expected.keys() <= found.keys():
        return False
    sizes = {
        name: [parameter.numel() for group in optimizer.param_groups for parameter in group["params"]]
        for name, optimizer in optimizers.items()
    }
    for name, part in found.items():
        shape, kind = list(part.get_shape()), part.get_dtype()
        if name in expected:
            if shape != list(expected[name].shape) or kind != KINDS.get(expected[name].dtype):
                return False
            continue
        match = re.fullmatch(r"optimizer/(\w+)/(\d+)/\w+", name)
        owned = sizes.get(match[1], []) if match else []
        if match is None or int(match[2]) >= len(owned) or math.prod(shape) > max(owned[int(match[2])], 1):
            return False
    return True
