"""What this project writes into Prefect: the names of runs, and artifacts (tables and pages)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from prefect import get_run_logger


def verbatim(name: str) -> Callable[[], str]:
    """A run's name for Prefect, which takes a plain string for a template: a name from outside would read settings."""
    shown = re.sub(r"[^\w ./:+@-]", "?", name)
    return lambda: shown


def as_cell(text: object) -> str:
    """`text` in a cell of a Markdown table: what would be Markdown, HTML or a new cell is replaced."""
    return re.sub(r"[^\w .,;:/+()%=?!@'-]", "?", " ".join(str(text).replace("`", "'").split()))


def leave_artifact(make: Callable[[], Any]) -> None:
    """Leave an artifact in Prefect; a server that does not take it is named, and fails nothing."""
    try:
        make()
    except Exception as error:
        get_run_logger().warning("Prefect's server did not take a page: %s", first_line(error))


def first_line(error: BaseException) -> str:
    """The first line of what an error says, its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
