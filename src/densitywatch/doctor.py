"""What this machine has and lacks, in plain words, for `densitywatch doctor`."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from densitywatch.errors import ParamsError
from densitywatch.params import load_params

NEEDED_GIGABYTES = 3.0
"""For data, models, caches and reports of the default profile, and some more."""
PACKAGES = ("torch", "torchvision", "dvc", "mlflow", "prefect", "great-expectations")


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: `needed` says that `make run` cannot work without it."""

    name: str
    ok: bool
    needed: bool
    detail: str


def diagnose(root: Path) -> list[Finding]:
    """Look at Python, packages, programs, params.yaml, devices and disk. Changes nothing."""
    return [_python(), *map(_package, PACKAGES), _params(root), _disk(root), *_devices(), _git(), _chromium()]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info >= (3, 11), True, f"{version} (3.11 or newer is needed)")


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, True, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, False, True, "not installed; run `make .venv/ready`")


def _params(root: Path) -> Finding:
    try:
        params = load_params(root / "params.yaml")
    except ParamsError as error:
        return Finding("params.yaml", False, True, str(error))
    return Finding("params.yaml", True, True, f"{params.data.source}, models: {', '.join(params.models)}")


def _disk(root: Path) -> Finding:
    free = shutil.disk_usage(root).free / 1e9
    return Finding("disk", free >= NEEDED_GIGABYTES, True, f"{free:.1f} GB free ({NEEDED_GIGABYTES:.0f} GB is needed)")


def _devices() -> list[Finding]:
    import torch  # takes seconds

    from densitywatch.devices import compiler_problem

    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    devices = ", ".join(names) or "none; the default profile is sized for this, profiles/gpu.yaml is not"
    problem = compiler_problem()
    compiler = shutil.which(os.environ.get("CXX", "g++")) or ""
    speed = f"{problem}; models run without torch.compile, slower and with the same results up to rounding"
    return [
        Finding("cores", True, False, str(cores)),
        Finding("CUDA devices", bool(names), False, devices),
        Finding("C++ compiler", problem is None, False, speed if problem else compiler),
    ]


def _git() -> Finding:
    found = shutil.which("git")
    return Finding("git", found is not None, True, found or "not found; DVC works inside a git repository")


def _chromium() -> Finding:
    found = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
    return Finding("chromium", found is not None, False, found or "not found; only the browser tests need it")
