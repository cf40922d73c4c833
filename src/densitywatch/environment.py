"""The environment every process of the project runs under: no telemetry, no pickles, no proxy to this machine itself.
Named here and nowhere else."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

from densitywatch.errors import ParamsError

SETTINGS = {
    "DO_NOT_TRACK": "true",  # Prefect's parser refuses "1"
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # MLflow's and DVC's advice and update notices would stand among the stage's own lines
    "DVC_NO_UPDATER": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

THIS_MACHINE = ("127.0.0.1", "localhost", "::1")


def limit_threads(environment: MutableMapping[str, str], threads: int) -> None:
    """So many threads for torch, BLAS and scikit-learn, unless the user exported another number; call it before torch
    is imported, which reads the variable once. Two stages that take all cores each wait for each other's threads at
    every small sum: calibrate took seven times as long beside a training."""
    chosen = environment.setdefault("OMP_NUM_THREADS", str(threads))
    if environment is os.environ and "numpy" in sys.modules and chosen.isdecimal():
        from threadpoolctl import threadpool_limits  # numpy's BLAS has read the variable already

        threadpool_limits(int(chosen))


def keep_freed_memory() -> None:
    """Let this process keep what large tensors leave behind for the next ones; does nothing but under glibc.

    By default glibc gives blocks of 32 MiB and more back to the system and takes them again, zeroed page by page: more
    than half of PixelRNN's time on batches of 250 images, a third of PixelCNN's (docs/lab/performance.md). The price is
    a peak that stays, so it is for stages, which end, and not for scoring, whose memory is to stay flat.
    """
    most_blocks_of_their_own, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "gnu_get_libc_version"):
        library.mallopt(most_blocks_of_their_own, 0)
        library.mallopt(trim_threshold, 2**31 - 1)


def check_folder(root: Path) -> None:
    """Refuse a project folder whose path the tools underneath would take apart; call it before anything is written.

    Raises ParamsError with the characters.
    """
    # : separates the folders of PATH and PYTHONPATH; % ? # end the path inside an address; {{ and }} are filled in by
    # Prefect's templates; a line break ends a line of a log or a message
    odd = [mark for mark in (":", "%", "?", "#", "{{", "}}", "\n", "\r") if mark in str(root.resolve())]
    if odd:
        raise ParamsError(
            f"the project's folder {str(root.resolve())!r} has {' '.join(map(repr, odd))} in its path, which Prefect,"
            " MLflow or DVC cannot take; move it to one without"
        )


def settle(environment: MutableMapping[str, str]) -> None:
    """Set what is not set yet; what the user exported stays. Call it before the libraries concerned are imported."""
    for name, value in SETTINGS.items():
        environment.setdefault(name, value)
    _reach_this_machine_directly(environment)


def _reach_this_machine_directly(environment: MutableMapping[str, str]) -> None:
    """Name this machine among the hosts that no proxy serves, under both names: libraries read one or the other."""
    given = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    hosts = [host.strip() for host in given.split(",") if host.strip()]
    if "*" not in hosts:
        hosts += [host for host in THIS_MACHINE if host not in hosts]
    environment["no_proxy"] = environment["NO_PROXY"] = ",".join(hosts)
