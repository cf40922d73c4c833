"""A run of a flow in this process that can be stopped: when it ends, for any reason, so does all that it started.

A run that is told to stop starts nothing more, gives its stages time for a checkpoint, and is gone within five seconds.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TextIO

from densitywatch import stopping
from densitywatch.errors import DensitywatchError
from pipelines import dvc_commands, dvc_files, run_lock, run_processes, server

LATEST = 4.7
"""Seconds after which a stopped process ends, even if Prefect has more to tell its server."""

_current: str | None = None


@contextmanager
def one_run(root: Path, *, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the run lock, under which a run may change what DVC tracks, and clear up after earlier runs first.

    Processes that an earlier run left behind are ended, and DVC's files are repaired.

    say: wait for another run to end; called with the reason. By default DensitywatchError is raised.
    """
    with run_lock.one_run_at_a_time(root, say=say):
        _end_left_behind(root)
        dvc_files.settle(root)
        yield


@contextmanager
def stoppable(root: Path, *, command: bool = False) -> Iterator[None]:
    """Inside the block, Ctrl-C, SIGTERM and SIGHUP end this process and all that it starts; nested, it has no effect.

    Processes that an earlier run left behind are ended first, unless another run holds the run lock: then this one may
    be refused, and `one_run` ends them otherwise. If this run is killed, its watch ends what is left.

    command: whether this process is the command that a person typed. If so, a stop prints one line and exits with the
    code that shells expect. If not, a stop raises Stopped; a process that Prefect started for this run ends after five
    seconds at the latest.
    """
    global _current
    if _current is not None:
        yield
        return
    if run_lock.holder(root) is None:
        _end_left_behind(root)
    _current = os.environ[run_processes.MARK] = run_processes.new_mark(root)
    watch = run_processes.start_watch(_current)
    unwound = threading.Event()
    if command:
        end, first = partial(_end_command, mark=_current, unwound=unwound, stderr=sys.stderr), _be_quiet
    else:
        end, first = partial(_end_flow, mark=_current, unwound=unwound), None
    try:
        with stopping.listening(end, first=first):
            try:
                yield
            finally:
                if stopping.asked():
                    unwound.set()
                    if command:
                        threading.Event().wait()  # another thread is ending this process
    finally:
        if not stopping.asked():
            watch.kill()
            os.environ.pop(run_processes.MARK)
        assert watch.stdin is not None
        watch.stdin.close()
        watch.wait()
        _current = None


def _end_left_behind(root: Path) -> None:
    if not run_processes.end(lambda: run_processes.left_behind(root)):
        stuck = ", ".join(str(process.pid) for process in run_processes.left_behind(root))
        raise DensitywatchError(
            f"an earlier run in {root.resolve()} left processes that do not end: {stuck}; kill them"
        )


def _be_quiet() -> None:
    """Show nothing of what libraries say about the stop: Prefect's log, an exception that Python had to ignore."""
    logging.disable()
    sys.stderr = io.StringIO()


def _end_command(number: int, mark: str, unwound: threading.Event, stderr: TextIO) -> None:
    """End all that the run has started, print one line, and end this process."""
    since = time.monotonic()
    _be_quiet()
    dvc_commands.interrupt_waiting()
    gone = run_processes.end(partial(run_processes.of_run, mark))
    if (
        "PREFECT_API_URL" in os.environ and not server.is_temporary()
    ):  # the server stays, so the run must end there and give its device slot back
        unwound.wait(max(0.0, since + LATEST - time.monotonic()))
    left = "" if gone else "; these processes do not end: " + ", ".join(str(p.pid) for p in run_processes.of_run(mark))
    sys.stdout.flush()
    print(f"pipelines: stopped; run it again to go on where it was{left}", file=stderr, flush=True)
    os._exit(stopping.exit_code(number))


def _end_flow(number: int, mark: str, unwound: threading.Event) -> None:
    """End all that the flow has started; the rest of the time is for Prefect to tell its server how the run ended."""
    since = time.monotonic()
    dvc_commands.interrupt_waiting()
    run_processes.end(partial(run_processes.of_run, mark))
    if "PREFECT__FLOW_RUN_ID" in os.environ:  # this process exists for this run alone
        time.sleep(max(0.0, since + LATEST - time.monotonic()))
        os._exit(stopping.exit_code(number))
