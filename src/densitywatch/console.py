"""The program around the verbs of cli.py: one line and an exit code for each failure, and an end when told to stop.

Exit codes: 0 done, 1 a failure named in one line on stderr, 2 wrong usage; 130, 143 or 129 when stopped by Ctrl-C,
SIGTERM or SIGHUP.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from densitywatch import environment, stopping
from densitywatch.errors import DensitywatchError
from densitywatch.text import visible

_ADVICE = {
    errno.ENOSPC: "; free some space and run the same command again",
    errno.EACCES: "; give this user the right to read and write there",
}
_INTERRUPTED = 130
"""The exit code that typer gives a KeyboardInterrupt, whichever signal it came from."""
_ends_by_itself = threading.Event()


def run(app: Callable[..., Any]) -> None:
    """Run the verb that was typed. Turns what fails into one line on stderr and an exit code."""
    environment.settle(os.environ)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a letter that the terminal does not have is no failure
            stream.reconfigure(errors="backslashreplace")
    with stopping.listening(_end_in_time):
        _run(app)


def ends_by_itself() -> None:
    """Say that Ctrl-C is this verb's normal end: after a signal it takes the time that it needs."""
    _ends_by_itself.set()


def _run(app: Callable[..., Any]) -> None:
    try:
        if Path("params.yaml").is_file():
            environment.check_folder(Path())
            environment.read_file(Path())
        app(prog_name="densitywatch")
    except SystemExit as ended:
        number = stopping.asked()
        if number is None or ended.code != _INTERRUPTED:
            raise
        _end_children()
        _fail(_stopped(number), stopping.exit_code(number))
    except DensitywatchError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        if error.errno == errno.EPIPE:  # the reader of a pipe went away, as with `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}{_ADVICE.get(error.errno or 0, '')}", 1)


def _fail(sentence: str, code: int) -> None:
    print(f"densitywatch: {visible(' '.join(sentence.split()))}", file=sys.stderr)
    sys.exit(code)


def _stopped(number: int) -> str:
    return f"stopped by {signal.Signals(number).name}"


def _end_in_time(number: int) -> None:
    """End this process where its main thread does not: it may be inside a library that handles no signal."""
    if _ends_by_itself.is_set():
        return
    time.sleep(stopping.GRACE)
    _end_children()
    print(f"densitywatch: {_stopped(number)}", file=sys.stderr, flush=True)
    os._exit(stopping.exit_code(number))


def _end_children() -> None:
    """End what this process has started: the other ranks of a training, a decoder in its own process."""
    import psutil  # only where something was stopped

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
