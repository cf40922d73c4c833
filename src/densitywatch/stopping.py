"""Stopping: Ctrl-C, SIGTERM and SIGHUP end a command with one line and the exit code that shells expect.

The main thread gets an exception, `Stopped`. Work that must not be interrupted (a training step) loops over `between`,
which stops only between two items. Whatever the main thread does, the process is gone after a few seconds.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

Item = TypeVar("Item")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 3.5
"""Seconds to write a checkpoint in; after that the process is killed."""

_asked: int | None = None
_block = object()
"""The block that listens, or did last; what an older one hears late is not its signal."""
_raised = False
_deferring = False
_first: Callable[[], None] | None = None


class Stopped(KeyboardInterrupt):
    """The process was told to stop by the signal `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


def asked() -> int | None:
    """The signal that told this process to stop, or None. It stays after `listening` has ended, until the next."""
    return _asked


def stop_if_asked() -> None:
    """Raise Stopped once the process was told to stop; for threads, which signals do not reach."""
    if _asked is not None:
        raise Stopped(_asked)


def exit_code(number: int) -> int:
    """The exit code of a program that a signal ended, as shells have it: 130 for Ctrl-C, 143 SIGTERM, 129 SIGHUP."""
    return 128 + number


def between(items: Iterable[Item]) -> Iterator[Item]:
    """The items; a signal to stop waits until the work on an item is done, and raises Stopped instead of the next."""
    global _deferring
    _deferring = True
    try:
        for item in items:
            yield item
            stop_if_asked()
    finally:
        _deferring = False


@contextmanager
def listening(at_once: Callable[[int], None], *, first: Callable[[], None] | None = None) -> Iterator[None]:
    """Inside the block the first of the three signals raises Stopped and runs `at_once(signal)` in a thread.

    `first` is called in the main thread before Stopped is raised there, so before anything can be said about it.

    The thread runs even while the main thread is inside a library call that takes long. An ignored signal stays ignored
    (nohup). A signal that has another handler keeps it; `at_once` runs for it too. Outside of the main thread, which
    alone may handle signals, this does nothing.
    """
    global _asked, _block, _raised, _first
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked, _block, _raised, _first = None, object(), False, first
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    ours = {
        number: before
        for number in SIGNALS
        if (before := signal.getsignal(number)) in (signal.SIG_DFL, signal.default_int_handler)
    }
    awaited = {number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_hear, args=(reader, awaited, at_once, _block), name="stopping", daemon=True).start()
    for number in ours:
        signal.signal(number, _raise)
    try:
        yield
    finally:
        for number, before in ours.items():
            signal.signal(number, before)
        signal.set_wakeup_fd(wakeup)
        os.close(writer)


def _hear(reader: int, awaited: set[signal.Signals], at_once: Callable[[int], None], block: object) -> None:
    global _asked
    with os.fdopen(reader, "rb", buffering=0) as heard:
        while byte := heard.read(1):
            if byte[0] in awaited:
                if block is _block:
                    _asked = byte[0]
                at_once(byte[0])
                return


def _raise(number: int, _frame: FrameType | None) -> None:
    global _asked, _raised
    _asked = number
    if not _deferring and not _raised:
        _raised = True
        if _first is not None:
            _first()
        raise Stopped(number)
