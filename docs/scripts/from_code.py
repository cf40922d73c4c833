"""What the pages made from code share: types, limits and texts of Python objects as people read them."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import types
import typing
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[2]


def kinds(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return kinds(inner[0])
    if origin is Literal:
        return " or ".join(f"`{as_yaml(value)}`" for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(kinds(part) for part in inner)
    if origin is tuple:
        parts = [part for part in inner if part is not ...]
        return (
            f"list of {' and '.join(kinds(part) for part in parts)}"
            if ... in inner
            else f"{len(parts)} values: {kinds(parts[0])}"
        )
    if origin is dict:
        return "mapping"
    names = {
        int: "whole number",
        float: "number",
        str: "text",
        bool: "`true` or `false`",
        type(None): "`null`",
        Path: "path",
    }
    return names.get(annotation, str(getattr(annotation, "__name__", annotation)))


def as_yaml(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "[" + ", ".join(as_yaml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{}" if not value else str(value)
    if isinstance(value, float):
        return f"{value:g}"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def attribute_docs(model: type) -> dict[str, str]:
    """The text below each attribute of a class."""
    body = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for this, following in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(this, ast.AnnAssign)
            and isinstance(this.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            found[this.target.id] = " ".join(str(following.value.value).split())
    return found


def first_sentence(text: str | None) -> str:
    whole = " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.:]) (?=[A-Z])", whole)[0].rstrip(":")


def cell(text: str) -> str:
    """Text as a table's cell."""
    return " ".join(text.split()).replace("|", "\\|")
