from __future__ import annotations

import base64
from pathlib import Path

import jinja2
import pytest

from densitywatch.templates import data_uri, page_templates


def rendered(folder: Path, text: str, **values: object) -> str:
    (folder / "page.html.j2").write_text(text, encoding="utf-8")
    return page_templates(folder, shout=str.upper).get_template("page.html.j2").render(**values)


def test_a_value_is_text_and_never_markup(tmp_path: Path) -> None:
    assert rendered(tmp_path, "<p>{{ name }}</p>", name="<script>") == "<p>&lt;script&gt;</p>"


def test_a_name_that_is_not_given_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(jinja2.UndefinedError, match="'missing' is undefined"):
        rendered(tmp_path, "{{ missing }}")


def test_a_page_has_the_filters_that_it_asks_for_and_visible(tmp_path: Path) -> None:
    assert rendered(tmp_path, "{{ name | shout }} {{ escape | visible }}", name="a", escape="\x1b[1m") == r"A \x1b[1m"


def test_lines_of_template_code_leave_no_blank_lines(tmp_path: Path) -> None:
    assert rendered(tmp_path, "{% if true %}\n  {% if true %}\na\n  {% endif %}\n{% endif %}\n") == "a\n"


def test_a_picture_in_a_page_is_its_own_bytes() -> None:
    address = data_uri(b"\x89PNG", "image/png")
    assert address.startswith("data:image/png;base64,")
    assert base64.b64decode(address.partition(",")[2]) == b"\x89PNG"
