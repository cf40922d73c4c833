"""The identity of a run: a digest of all that decides its weights. A run only goes on from a state of its identity."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from densitywatch.params import Params, Precision

PACKAGE = "densitywatch"


def identity_of(
    block: dict[str, Any],
    params: Params,
    model: nn.Module,
    fabric: Any,
    *,
    data_digest: str,
    precision: Precision,
    compiled: bool,
) -> str:
    """A digest of the model's block of params, the data, the source that trains it and how this machine computes.

    precision, compiled: those in effect, which `auto` and the processor decide.
    """
    content = {
        "seed": params.seed,
        "model": block,
        "data": data_digest,
        "source": source_digest(f"{PACKAGE}.training.loop", type(model).__module__),
        "precision": precision,
        "compiled": compiled,
        "channels_last": params.device.channels_last,
        "threads": torch.get_num_threads(),
        "device": fabric.device.type,
        # the vectors that torch computes with: sums of another width are rounded in another way
        "processor": torch.backends.cpu.get_cpu_capability() if fabric.device.type == "cpu" else None,
        "devices": fabric.world_size,
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def source_digest(*modules: str) -> str:
    """sha256 over the source of these modules and of every module of the package that they import."""
    digests: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        file = getattr(sys.modules.get(name), "__file__", None)
        if name in digests or file is None:
            continue
        source = Path(file).read_bytes()
        digests[name] = hashlib.sha256(source).hexdigest()
        waiting += [imported for imported in imports(source) if imported.partition(".")[0] == PACKAGE]
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def imports(source: bytes) -> Iterator[str]:
    """Every name in this source's imports, inside functions too, that may be a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in names if name in sys.modules]
            yield from modules
            if len(modules) < len(names):  # else only modules of the package are imported, and its own imports not used
                yield node.module
