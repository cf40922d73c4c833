"""A run of a flow in this process: it can be stopped, and whatever ends it ends all that it started.

What is told to stop starts nothing more, gives its stages the time for a checkpoint, and is gone within five seconds.
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

from densitywatch import stopping
from densitywatch.errors import DensitywatchError
from pipelines import dvc_commands, dvc_files, run_lock, run_processes, server

LATEST = 4.7
"""Seconds after which a process that was told to stop is gone, whatever Prefect still wants to tell its server."""

_current: str | None = None


@contextmanager
def one_run(root: Path, *, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """The one run of this checkout that may change what DVC tracks, with DVC's own files in order.

    say: wait for another run to end, and tell this why; by default DensitywatchError is raised.
    """
    with run_lock.one_run_at_a_time(root, say=say):
        dvc_files.settle(root)
        yield


@contextmanager
def stoppable(root: Path, *, command: bool = False) -> Iterator[None]:
    """While it lasts, Ctrl-C, SIGTERM and SIGHUP end this process and all that it starts; inside another it is nothing.

    What an earlier run has left behind is ended first. What this one leaves, should it be killed, its watch ends.

    command: the process is the command that a person typed. Stopped, it ends here: one line and the exit code that
    shells expect. Otherwise it ends by the exception; at the latest after five seconds where the process is one that
    Prefect has started for this run.
    """
    global _current
    if _current is not None:
        yield
        return
    if not run_processes.end(lambda: run_processes.left_behind(root)):
        stuck = ", ".join(str(process.pid) for process in run_processes.left_behind(root))
        raise DensitywatchError(
            f"an earlier run in {root.resolve()} left processes that do not end: {stuck}; kill them"
        )
    _current = os.environ[run_processes.MARK] = run_processes.new_mark(root)
    watch = run_processes.start_watch(_current)
    unwound = threading.Event()
    end = partial(_end_command if command else _end_flow, mark=_current, unwound=unwound)
    try:
        with stopping.listening(end):
            try:
                yield
            finally:
                if stopping.asked():
                    unwound.set()
                    if command:
                        threading.Event().wait()  # the thread that ends this process is at it
    finally:
        if not stopping.asked():
            watch.kill()
            os.environ.pop(run_processes.MARK)
        assert watch.stdin is not None
        watch.stdin.close()
        watch.wait()
        _current = None


def _end_command(number: int, mark: str, unwound: threading.Event) -> None:
    """End all that the run has started, then this process, with one line."""
    since, stderr = time.monotonic(), sys.stderr
    logging.disable()  # nobody asked what Prefect says of its own end
    sys.stderr = io.StringIO()
    dvc_commands.interrupt_waiting()
    gone = run_processes.end(partial(run_processes.of_run, mark))
    if (
        "PREFECT_API_URL" in os.environ and not server.is_temporary()
    ):  # a server that stays: the run is to end there, and give its device slot back
        unwound.wait(max(0.0, since + LATEST - time.monotonic()))
    left = "" if gone else "; these processes do not end: " + ", ".join(str(p.pid) for p in run_processes.of_run(mark))
    sys.stdout.flush()
    print(f"pipelines: stopped; run it again to go on where it was{left}", file=stderr, flush=True)
    os._exit(stopping.exit_code(number))


def _end_flow(number: int, mark: str, unwound: threading.Event) -> None:
    """End all that the flow has started; Prefect has the rest of the time to tell its server, and ends the process."""
    since = time.monotonic()
    dvc_commands.interrupt_waiting()
    run_processes.end(partial(run_processes.of_run, mark))
    if "PREFECT__FLOW_RUN_ID" in os.environ:  # nothing but this run lives in the process
        time.sleep(max(0.0, since + LATEST - time.monotonic()))
        os._exit(stopping.exit_code(number))
