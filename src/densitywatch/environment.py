"""The environment variables of every process of the project: no telemetry, no pickles, no proxy for this machine.

They are set here and nowhere else.
"""

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
    # no advice and no update notices of MLflow and DVC among a stage's own lines
    "DVC_NO_UPDATER": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

THIS_MACHINE = ("127.0.0.1", "localhost", "::1")


def limit_threads(environment: MutableMapping[str, str], threads: int) -> None:
    """Limit torch, BLAS and scikit-learn to `threads` threads, unless the user exported another number.

    Call it before torch is imported, which reads the variable once. Two stages that both use all cores wait for each
    other's threads in every small operation: calibrate took seven times as long next to a training.
    """
    chosen = environment.setdefault("OMP_NUM_THREADS", str(threads))
    if environment is os.environ and "numpy" in sys.modules and chosen.isdecimal():
        from threadpoolctl import threadpool_limits  # numpy's BLAS has read the variable already

        threadpool_limits(int(chosen))


def keep_freed_memory() -> None:
    """Let this process keep the memory of freed tensors for the next ones; only under glibc.

    By default glibc returns blocks of 32 MiB and more to the system and gets them again, zeroed page by page: more than
    half of PixelRNN's time on batches of 250 images, a third of PixelCNN's (docs/lab/performance.md). The price is that
    the process keeps its peak of memory. So it is for stages, which end, and not for scoring, whose memory is to stay
    flat.
    """
    most_mapped_blocks, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "gnu_get_libc_version"):
        library.mallopt(most_mapped_blocks, 0)
        library.mallopt(trim_threshold, 2**31 - 1)


def check_folder(root: Path) -> None:
    """Refuse a project folder whose path Prefect, MLflow or DVC cannot take; call it before anything is written.

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
    """Set what is not set yet; what the user exported stays. Call it before those libraries are imported."""
    for name, value in SETTINGS.items():
        environment.setdefault(name, value)
    _reach_this_machine_directly(environment)


def _reach_this_machine_directly(environment: MutableMapping[str, str]) -> None:
    """Add this machine to the hosts without a proxy, in both variables: libraries read one or the other."""
    given = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    hosts = [host.strip() for host in given.split(",") if host.strip()]
    if "*" not in hosts:
        hosts += [host for host in THIS_MACHINE if host not in hosts]
    environment["no_proxy"] = environment["NO_PROXY"] = ",".join(hosts)
