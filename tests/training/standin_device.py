"""A second device without hardware: torch's own place for foreign backends, filled in Python.

Its tensors are computed by the CPU, so figures are the CPU's, but torch takes them for tensors of the device `standin`:
`.cpu()`, `.to(device)` and `.item()` carry a value over; an operation on tensors of two devices, a random generator of
the CPU asked for numbers there, and `.numpy()` fail as they do on a GPU. What CUDA allows is allowed: numbers without
dimensions and indices may stay on the CPU. Importing this file registers the device for the whole process.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning_fabric.accelerators import Accelerator
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "standin"
CARRIED = {"copy_", "_to_copy"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}


class Backend:
    """What torch asks a backend's module."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """The CPU's generator draws the numbers."""

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend(NAME, Backend)
DEVICE = torch.device(NAME, 0)


class DeviceTensor(torch.Tensor):
    """A tensor of the device; `raw` is where its values are."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> DeviceTensor:
        made: DeviceTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=DEVICE,
        )
        made.raw = raw
        return made

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Lists as indices become tensors here: torch's own code for it finds no such backend's."""
        if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            parts = tuple(torch.tensor(part) if isinstance(part, list) else part for part in index)
            args = (args[0], parts, *args[2:])
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(function, *args, **(kwargs or {}))


def compute(function: Any, *args: Any, **kwargs: Any) -> Any:
    """One operation of torch with tensors of the device among its arguments, or made there."""
    name = function._schema.name.partition("::")[2]
    given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    here = [tensor for tensor in given if isinstance(tensor, DeviceTensor)]
    elsewhere = [tensor for tensor in given if not isinstance(tensor, DeviceTensor) and tensor.dim()]
    if here and elsewhere and name not in CARRIED | INDEXED:
        raise RuntimeError(f"{function}: expected all tensors to be on the same device, but found {DEVICE} and cpu")
    if isinstance(kwargs.get("generator"), torch.Generator):
        raise RuntimeError(f"{function}: expected a generator of {DEVICE} but found one of cpu")
    target = kwargs.get("device")
    leaves = name == "_to_copy" and target is not None and torch.device(target).type == "cpu"
    if target is not None:
        kwargs["device"] = torch.device("cpu")
    kwargs.pop("pin_memory", None)
    known = {id(tensor.raw): tensor for tensor in here}
    args, kwargs = pytree.tree_map(lambda leaf: leaf.raw if isinstance(leaf, DeviceTensor) else leaf, (args, kwargs))
    result = function(*args, **kwargs)
    if leaves:
        return result

    def back(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or any(leaf is tensor for tensor in given):
            return leaf
        return known.get(id(leaf)) if id(leaf) in known else DeviceTensor(leaf)

    return pytree.tree_map(back, result)


FALLBACK = torch.library.Library("_", "IMPL")
FALLBACK.fallback(compute, "PrivateUse1")


made_on_the_cpu = torch.tensor


def made_where_asked(data: Any, *, device: Any = None, **more: Any) -> torch.Tensor:
    """torch.tensor, whose own way to such a device does not pass through Python."""
    made = made_on_the_cpu(data, **more)
    return made if device is None else made.to(device)


torch.tensor = made_where_asked  # type: ignore[assignment]


class StandIn(Accelerator):
    """The device as Fabric takes it."""

    def setup_device(self, device: torch.device) -> None: ...

    def teardown(self) -> None: ...

    @staticmethod
    def parse_devices(devices: Any) -> int:
        return 1

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [DEVICE]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME
