"""Processes that tests strike at random moments, and what a struck one must leave behind: nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

TOP = Path(__file__).parents[2]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
TOKEN = "DENSITYWATCH_FAULTS"
"""A variable with a folder, by which all that a test has started is known."""


def heed_signals() -> None:
    """Tests that run in the background ignore the signals of a terminal, and all that they start does so as well."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def of_project(root: Path) -> dict[str, str]:
    """The environment of programs of `root` that run this checkout's code."""
    from tests.pipelines.checkout import own_environment

    paths = os.pathsep.join([str(TOP / "src"), str(TOP)])
    return own_environment(root) | {"PYTHONPATH": paths, TOKEN: str(root), "SHELL": "/bin/sh"}


def start(command: Sequence[str], root: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """A program in a session of its own, whose lines go to said.txt in `root`."""
    with (root / "said.txt").open("a") as said:
        return subprocess.Popen(
            command,
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=heed_signals,
        )


def verb(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "densitywatch", *arguments]


def finish(command: Sequence[str], root: Path, environment: Mapping[str, str], seconds: float = 600) -> None:
    """Run a program to its end, which must be a good one."""
    process = start(command, root, environment)
    try:
        code = process.wait(seconds)
    finally:
        process.kill()
    assert code == 0, (root / "said.txt").read_text()[-4000:]


@dataclass
class Blow:
    """One program that was struck."""

    signal: signal.Signals
    after: float
    ended: bool
    """Whether it had ended by itself before the moment came."""


def strike(
    command: Sequence[str],
    root: Path,
    environment: Mapping[str, str],
    number: signal.Signals,
    after: float,
    *,
    seen: Path | None = None,
) -> Blow:
    """Start a program, send it a signal after so many seconds, and wait until it and all that it started are gone.

    seen: count the seconds from the moment when the program has written this file.
    """
    before = written(seen)
    process = start(command, root, environment)
    while seen is not None and written(seen) == before and process.poll() is None:
        time.sleep(0.02)
    moment = time.monotonic() + after
    while time.monotonic() < moment and process.poll() is None:
        time.sleep(0.02)
    blow = Blow(number, after, process.poll() is not None)
    process.send_signal(number)
    code = process.wait(60)
    assert code == (0 if blow.ended else CODES[number]), (number, after, (root / "said.txt").read_text()[-3000:])
    left = left_over(root, 15)
    assert left == [], (number, after)
    return blow


def written(path: Path | None) -> int:
    """When a file was written, in nanoseconds; 0 where there is none."""
    try:
        return 0 if path is None else path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def living(root: Path) -> list[psutil.Process]:
    """What lives of a project: its environment or its folder says so."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = process.environ().get(TOKEN) == str(root) or Path(process.cwd()).is_relative_to(root)
            if mine and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def left_over(root: Path, seconds: float) -> list[str]:
    """The processes that are still there after so many seconds."""
    until = time.monotonic() + seconds
    while (found := living(root)) and time.monotonic() < until:
        time.sleep(0.05)
    return [f"{process.pid} {process.cmdline()}" for process in found if process.is_running()]


def moments(seed: int, count: int, longest: float) -> list[float]:
    """The same moments every time, between 0 and `longest` seconds."""
    chosen = random.Random(seed)
    return [chosen.uniform(0.0, longest) for _ in range(count)]
