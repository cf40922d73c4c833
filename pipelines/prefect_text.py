"""What this project writes into Prefect: the names of runs, and artifacts (tables and pages)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run


def verbatim(name: str) -> Callable[[], str]:
    """A run's name for Prefect, which takes a plain string for a template: a name from outside would read settings."""
    shown = re.sub(r"[^\w ./:+@-]", "?", name)
    return lambda: shown


def plain_words(text: str, most: int = 200) -> str:
    """A text from outside for a page or a message: no sign of it is markup. At most `most` letters."""
    return re.sub(r"[^\w ,.;/:()+-]", "?", text)[:most]


def name_this_run(name: str) -> None:
    """Give the run of a flow that this is called in another name; a server that does not take it fails nothing."""
    if flow_run.id is None:
        return
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(UUID(str(flow_run.id)), name=name)
    except Exception as error:  # a name is worth no run
        get_run_logger().warning("Prefect's server did not take this run's name: %s", first_line(error))


def without_markup(text: object) -> str:
    """`text` in one line for an artifact. What would be Markdown, HTML or a new cell is replaced."""
    line = " ".join(str(text).replace("`", "'").replace("->", "to").split())
    return re.sub(r"[^\w .,;:/+()%=?!@'\u201c\u201d\u2026\u00b7#&-]", "?", line)


def leave_artifact(make: Callable[[], Any]) -> None:
    """Leave an artifact in Prefect; a server that does not take it is named, and fails nothing."""
    try:
        make()
    except Exception as error:
        get_run_logger().warning("Prefect's server did not take a page: %s", first_line(error))


def first_line(error: BaseException) -> str:
    """The first line of what an error says, its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
