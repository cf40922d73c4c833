"""The one jinja environment of all pages, and pictures inside a page."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2

from densitywatch.text import visible


def page_templates(folder: Path, **filters: Callable[[Any], str]) -> jinja2.Environment:
    """The templates in `folder`.

    Every value is escaped, and a name that the caller does not give is an error (jinja2.UndefinedError). The filter
    `visible` shows control characters by their codes; `filters` adds more.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": visible, **filters}
    return environment


def data_uri(content: bytes, media_type: str = "image/png") -> str:
    """A file's bytes as the address of an <img>, so that the page loads nothing."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
