"""Progress of long work: a bar on a terminal, a plain line now and then when piped. All of it goes to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from densitywatch.text import visible

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 10.0


def say(message: str) -> None:
    """One plain line to stderr; control characters in it are shown by their codes."""
    print(visible(message), file=sys.stderr, flush=True)


def tell(message: object) -> None:
    """One plain line of a verb's result, to stdout, in the same way."""
    print(visible(message))


def track(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items of `iterable` and show the progress; without `total`, len() is taken where there is one."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    return _bar(iterable, description, total) if sys.stderr.isatty() else _lines(iterable, description, total)


def _bar(iterable: Iterable[Item], description: str, total: int | None) -> Iterator[Item]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total)
        for item in iterable:
            yield item
            progress.advance(task)


def _lines(iterable: Iterable[Item], description: str, total: int | None) -> Iterator[Item]:
    started = said = time.monotonic()
    count = 0
    for count, item in enumerate(iterable, start=1):
        yield item
        now = time.monotonic()
        if now - said >= SECONDS_BETWEEN_LINES:
            said = now
            say(f"{description}: {count}" + (f" of {total}" if total is not None else ""))
    say(f"{description}: {count} done in {time.monotonic() - started:.1f} s")
