"""The markers `server`, `browser` and `slow`, which `make test-fast` leaves out, and what checks the first two.

A fixture under `@marks("server")` gives its marker to every test that asks for it. A test that opens a
port, or starts a server or a browser, and lacks the marker, fails. tests/conftest.py hands the hooks to pytest.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

F = TypeVar("F", bound=Callable[..., Any])
PROGRAMS = {
    "browser": re.compile(r"(^|/)(chromium|chrome)[\w-]*( |$)|/playwright/driver/"),
    "server": re.compile(
        r"-m pipelines( |$)|pipelines\.(server|services|mlflow_server)|\bstoppable_run\.py|start_temporary|\buvicorn\b"
        r"|mlflow(\.\w+)? (server|models serve)|prefect (server|worker)|-m pipelines\.prefect_worker"
        r"|densitywatch review|-m http\.server"
        r"|/(initdb|pg_ctl|postgres)( |$)"
    ),
}
"""The command lines of servers and browsers, as far as the tests start them."""

_running: pytest.Item | None = None


def marks(name: str) -> Callable[[F], F]:
    """Under `@pytest.fixture`: every test that asks for this fixture, itself or through another, has the marker."""

    def note(fixture: F) -> F:
        fixture.__dict__["marks"] = name
        return fixture

    return note


def what_starts(event: str, arguments: tuple[Any, ...]) -> tuple[str, str] | None:
    """The marker that an audit event of Python asks for, and what happened; None for any other event."""
    if event == "socket.bind":
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None
        return ("server", f"opens a port of {host or 'every address'}") if isinstance(host, str) else None
    if event == "subprocess.Popen":
        line = " ".join(map(_text, arguments[1]))
        for marker, program in PROGRAMS.items():
            if found := program.search(line):
                return marker, f"starts a {marker} ({found[0].strip()})"
    return None


def _text(word: Any) -> str:
    return word.decode(errors="replace") if isinstance(word, bytes) else str(word)


def _refuse_unmarked(event: str, arguments: tuple[Any, ...]) -> None:
    if _running is None or event not in ("socket.bind", "subprocess.Popen"):
        return
    found = what_starts(event, arguments)
    if found is not None and _running.get_closest_marker(found[0]) is None:
        marker, what = found
        raise RuntimeError(
            f"{_running.nodeid} {what} and lacks the marker; put @pytest.mark.{marker} above it,"
            f' or @marks("{marker}") on the fixture'
        )


def pytest_configure() -> None:
    sys.addaudithook(_refuse_unmarked)


@pytest.hookimpl(tryfirst=True)  # before -m chooses among the items
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for definitions in getattr(item, "_fixtureinfo").name2fixturedefs.values():  # noqa: B009 not public
            marker = getattr(definitions[-1].func, "marks", None)
            if marker is not None:
                item.add_marker(marker)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    global _running
    _running = item
    try:
        return (yield)
    finally:
        _running = None
