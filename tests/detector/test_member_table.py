"""The table of members."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from densitywatch.detector.member_table import MEMBERS, find_member
from densitywatch.errors import ParamsError


def test_an_unknown_score_is_named_together_with_those_that_exist() -> None:
    with pytest.raises(ParamsError, match=r"no score 'wisdom'; there is: .*pixelcnn_nll"):
        find_member("wisdom")


def test_every_function_under_member_is_in_the_table(project_root: Path) -> None:
    written = {
        node.name
        for file in (project_root / "src" / "densitywatch" / "detector" / "scores").glob("*.py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(decorator).startswith("member(") for decorator in node.decorator_list)
    }
    assert written == set(MEMBERS)
