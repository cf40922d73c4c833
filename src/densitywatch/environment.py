"""The environment variables of every process of the project: no telemetry, no pickles, no proxy for this machine.

They are set here and nowhere else; a checkout's own are in its file .env.
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
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # no advice and no update notices of MLflow and DVC among a stage's own lines
    "DVC_NO_UPDATER": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

ENV_FILE = ".env"
"""Variables of a checkout: the database, the login and the address of a team's servers. Git does not track it."""
LOGIN = "DENSITYWATCH_LOGIN"
SHORTEST_PASSWORD = 8

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


def read_file(root: Path) -> None:
    """Take the variables of `root`/.env that are not set yet. Call it first in a program, before libraries read them.

    DENSITYWATCH_LOGIN (name:password) becomes what MLflow's client sends, unless that is set. Raises ParamsError when
    the file or the login cannot be read; no value is shown.
    """
    file = root / ENV_FILE
    if file.is_file():
        from dotenv import dotenv_values

        try:
            given = dotenv_values(file, interpolate=False)  # a password may hold a $
        except (OSError, UnicodeDecodeError):
            raise ParamsError(f"{file}: cannot be read; it has a line NAME=value for each variable, in UTF-8") from None
        for name, value in given.items():
            if value is not None:
                os.environ.setdefault(name, value)
    _reach_this_machine_directly(os.environ)
    known = login()
    if known is not None and "MLFLOW_TRACKING_USERNAME" not in os.environ:
        name, _, password = known.partition(":")
        os.environ |= {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": password}


def login() -> str | None:
    """The `name:password` that a team has set for its servers, DENSITYWATCH_LOGIN; None where there is none.

    Raises ParamsError when it has another form; it is not shown.
    """
    given = os.environ.get(LOGIN)
    if not given:
        return None
    name, _, password = given.partition(":")
    if not name or len(password) < SHORTEST_PASSWORD or not given.isascii() or not given.isprintable():
        raise ParamsError(
            f"{LOGIN}: not a login; give name:password in plain ASCII letters, digits and signs, the password of"
            f" {SHORTEST_PASSWORD} characters or more"
        )
    return given


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
        own = (*THIS_MACHINE, environment.get("DENSITYWATCH_HOST") or THIS_MACHINE[0])
        hosts += [host for host in dict.fromkeys(own) if host not in hosts]
    environment["no_proxy"] = environment["NO_PROXY"] = ",".join(hosts)
