"""The servers of `make up`: processes that outlive the command that started them.

var/services.json has the id and start time of each, so that `make down` ends these processes and no others, even when
another program has got the id since. Logs are in var/log.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from densitywatch.errors import DataError, ParamsError
from densitywatch.files import read_json, write_whole
from pipelines import listening, prefect_home, run_processes
from pipelines.server import START_SECONDS, ServiceFailed, last_words

STOP_SECONDS = 15.0
FAMILY_SECONDS = 5.0
NOTE = Path("var") / "services.json"
MARK = "DENSITYWATCH_SERVICE_OF"
"""A variable with the checkout's folder, which whatever a service starts inherits."""


def check_port(service: str, port: str, variable: str, ours: Sequence[psutil.Process] = ()) -> None:
    """Raises ServiceFailed when another program than `ours` has the port, ParamsError when it is no port."""
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ParamsError(f"{variable}={port}: not a port; give a number from 1 to 65535")
    if not _is_free(int(port)) and not any(_listens(process, int(port)) for process in ours):
        other = next((number for number in range(int(port) + 100, 65536, 100) if _is_free(number)), 0)
        raise ServiceFailed(
            f"port {port}, for {service}, is taken by another program (`make up` in another checkout?);"
            f" stop that one, or take another port: make up {variable}={other}"
        )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just closed is free
        with suppress(OSError):
            probe.bind((listening.host(), port))
            return True
    return False


def start(
    root: Path, name: str, command: Sequence[str], variables: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a program that outlives this one, in its own session, and note it in var/services.json."""
    log = root / "var" / "log" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(filter(None, [str(root.resolve()), os.environ.get("PYTHONPATH")]))
    with log.open("ab") as out, _interruptible():
        process = subprocess.Popen(  # noqa: S603
            command,
            cwd=root,
            env={**os.environ, "PYTHONPATH": path, MARK: str(root.resolve()), **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    began = run_processes.start_of(psutil.Process(process.pid))
    entry = {"name": name, "pid": process.pid, "start": began, "log": str(log)}
    write_whole(root / NOTE, json.dumps([*noted(root), entry], indent=1) + "\n")
    return process


@contextmanager
def _interruptible() -> Iterator[None]:
    """Programs that start in this block do not ignore SIGINT, by which Prefect's worker stops itself.

    A shell lets what it starts in the background (`nohup make up &`) ignore it, and so does all that starts from there.
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def wait_until_it_answers(root: Path, name: str, address: str, port: int | str) -> None:
    """Wait until the noted process answers: that process, not another program on its port.

    Raises ServiceFailed when it has ended, does not answer in time, or another program answers for it.
    """
    entry = next(entry for entry in noted(root) if entry["name"] == name)
    until = time.monotonic() + START_SECONDS
    while not prefect_home.answers(address):
        if find(entry) is None:
            raise ServiceFailed(f"{name} ended as it started: {last_words(Path(entry['log']))}; see {entry['log']}")
        if time.monotonic() > until:
            raise ServiceFailed(f"{name} does not answer at {address} after {START_SECONDS:.0f} s; see {entry['log']}")
        time.sleep(0.5)
    process = find(entry)
    if process is None or not _listens(process, int(port)):
        raise ServiceFailed(f"another program answers at {address} in the place of {name}; see {entry['log']}")


def _listens(process: psutil.Process, port: int) -> bool:
    """Whether the process or one of its children has the port."""
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            connections = one.net_connections(kind="tcp")
            if any(c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port for c in connections):
                return True
    return False


def end(process: psutil.Process) -> None:
    """End a process that leads its own session, and all its descendants, in whatever session they are."""
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        family = process.children(recursive=True)
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(psutil.TimeoutExpired):
            process.wait(STOP_SECONDS)
        _signal_all([process], psutil.Process.kill)
        _signal_all(family, psutil.Process.terminate)
        _, left = psutil.wait_procs(family, timeout=FAMILY_SECONDS)
        _signal_all(left, psutil.Process.kill)


def ours(root: Path) -> list[psutil.Process]:
    """What `make down` would end: the services of this checkout, and what they have started."""
    leaders = [process for entry in noted(root) if (process := find(entry)) is not None]
    found = [*leaders, *left_over(root)]
    for leader in leaders:
        with suppress(psutil.NoSuchProcess):
            found += leader.children(recursive=True)
    return list(dict.fromkeys(found))


def left_over(root: Path) -> list[psutil.Process]:
    """What the services of this checkout have started and left when they were killed, but for this very process."""
    found, folder = [], str(root.resolve())
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid not in own and process.environ().get(MARK) == folder:
                found.append(process)
    return found


def end_left_over(root: Path) -> None:
    """End what is left of the services of this checkout: a flow whose worker was killed, say."""
    left = left_over(root)
    _signal_all(left, psutil.Process.terminate)
    _, stuck = psutil.wait_procs(left, timeout=FAMILY_SECONDS)
    _signal_all(stuck, psutil.Process.kill)


def _signal_all(those: list[psutil.Process], signal_one: Callable[[psutil.Process], None]) -> None:
    for one in those:
        with suppress(psutil.NoSuchProcess):
            signal_one(one)


def noted(root: Path) -> list[dict[str, Any]]:
    """What was started and not yet ended, in the order of the start."""
    try:
        found = read_json(root / NOTE)
    except (FileNotFoundError, DataError):
        return []
    return [entry for entry in found if _is_entry(entry)] if isinstance(found, list) else []


def _is_entry(entry: object) -> bool:
    """Whether an entry names a process; the file may be damaged."""
    return (
        isinstance(entry, dict)
        and type(entry.get("pid")) is int
        and 0 < entry["pid"] < 1 << 31
        and isinstance(_start(entry), int | float | str)
        and all(isinstance(entry.get(name), str) for name in ("name", "log"))
    )


def _start(entry: dict[str, Any]) -> object:
    """When the process started, as noted; `created` is what earlier versions noted."""
    return entry.get("start", entry.get("created"))


def find(entry: dict[str, Any]) -> psutil.Process | None:
    """The noted process; None when it is gone, even if another program has its number by now."""
    with suppress(ValueError):  # a damaged note
        return run_processes.process_of(entry["pid"], str(_start(entry)))
    return None
