"""The device, threads and precision of a stage, and whether torch.compile is used."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densitywatch.errors import ModelError, ParamsError
from densitywatch.params import DeviceParams, Precision
from densitywatch.progress import say

SAID = "DENSITYWATCH_EAGER_SAID"
"""Set in the environment once `say_if_eager` has printed its line; the processes of a run inherit it."""
KERNELS = "TORCHINDUCTOR_CACHE_DIR"
"""Where torch.compile keeps what it has generated; unset, a folder of torch's choice below the temporary one."""


def start_fabric(device: DeviceParams, precision: Precision | None = None) -> Any:
    """Lightning Fabric on the devices of params.yaml, with this process's threads set; `precision` overrides theirs.

    Raises ParamsError when this machine does not have the accelerator or the number of devices that params ask for.
    """
    import lightning_fabric
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    torch.set_num_threads(device.threads_of_a_process)
    try:
        fabric = lightning_fabric.Fabric(
            accelerator=device.accelerator,
            devices=1 if device.accelerator == "cpu" and device.devices == "auto" else device.devices,
            precision=usable_precision(precision or device.precision, device),
        )
        fabric.launch()
    except (RuntimeError, ValueError, TypeError, MisconfigurationException) as error:
        message = " ".join(str(error).split())
        raise ParamsError(
            f"device: accelerator {device.accelerator!r} with devices {device.devices!r} cannot be used here: {message}"
        ) from None
    return fabric


def usable_precision(precision: Precision, device: DeviceParams) -> Precision:
    """`precision`; 32-true for bf16-mixed where the processor only emulates bfloat16, which is slower than 32 bits."""
    if precision != "bf16-mixed":
        return precision
    if device.accelerator == "cpu" or (device.accelerator == "auto" and not torch.accelerator.is_available()):
        return precision if computes_bfloat16() else "32-true"
    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "32-true"
    return precision


def computes_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices itself, and torch uses that."""
    # the capability that torch uses: with ATEN_CPU_CAPABILITY=avx2 a new processor computes as an older one does
    in_use = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return in_use and bool(torch.cpu._is_avx512_bf16_supported())


def choose_device(device: DeviceParams) -> torch.device:
    """The one device to evaluate on. Evaluation is in float32 and on one device, so that figures compare."""
    torch.set_num_threads(device.threads_of_a_stage)
    kind = device.accelerator
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise ModelError("device.accelerator: this machine offers no CUDA device; set it to auto or cpu")
    return torch.device(kind)


def should_compile(device: DeviceParams) -> bool:
    """Whether torch.compile is used: as params say; with auto, where a C++ compiler (CPU) or Triton (CUDA) is found."""
    if device.compile != "auto":
        return device.compile
    if torch.cuda.is_available() and device.accelerator in ("auto", "cuda"):
        return torch.utils._triton.has_triton()
    return compiler_problem() is None


def say_if_eager(device: DeviceParams) -> None:
    """One line, once a run, where models that ask for torch.compile run without it."""
    if device.compile != "auto" or should_compile(device) or SAID in os.environ:
        return
    os.environ[SAID] = "1"
    cuda = torch.cuda.is_available() and device.accelerator in ("auto", "cuda")
    why = "Triton is not installed" if cuda else compiler_problem()
    say(f"{why}: models run in the eager form, slower and with the same results up to rounding")


@functools.cache
def compiler_problem() -> str | None:
    """What is wrong with the C++ compiler that torch.compile uses (CXX, or else g++); None when it works."""
    name = os.environ.get("CXX", "g++")
    if shutil.which(name) is None:
        return f"no C++ compiler {name} on the PATH"
    # torch's kernels include Python's header, which many systems have in another package
    command = [name, "-x", "c++", "-fsyntax-only", f"-I{sysconfig.get_path('include')}", "-"]
    try:
        tried = subprocess.run(  # noqa: S603
            command, input="#include <Python.h>\n", capture_output=True, text=True, check=False, timeout=120
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the C++ compiler {name} cannot be used ({error})"
    if tried.returncode == 0:
        return None
    said = next((line for line in tried.stderr.splitlines() if "error" in line), "")
    hint = "; python3-dev has Python.h" if "Python.h" in said else ""
    return f"the C++ compiler {name} ends with code {tried.returncode}{hint}"


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, compiled for the shapes of its first call; uncompiled where the compiler fails."""
    keep_kernels_by_processor()
    torch._dynamo.config.suppress_errors = True
    fast: Callable[..., Any] = torch.compile(function, dynamic=False)
    return fast


def keep_kernels_by_processor() -> None:
    """Give torch.compile's cache a folder for each kind of processor.

    torch 2.14 finds generated code by what it computes, whatever the width of the vectors that it was written for. Code
    written under AVX2 is then built under AVX-512, on a machine that has become another or where several share a
    folder, and writes beyond the end of its arrays: wrong numbers or "double free or corruption".
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    kind = torch.backends.cpu.get_cpu_capability() + ("_AMX" if torch.cpu._is_amx_tile_supported() else "")
    folder = Path(os.environ.get(KERNELS) or default_cache_dir())
    if folder.name != kind:
        os.environ[KERNELS] = str(folder / kind)


def compiled_for_batches(function: Callable[..., Tensor], size: int) -> Callable[..., Tensor]:
    """`function(x, ...)`, compiled for batches of `size`; other batches, such as the last, use the uncompiled one."""
    fast = compiled(function)
    return lambda x, *others: (fast if len(x) == size else function)(x, *others)
