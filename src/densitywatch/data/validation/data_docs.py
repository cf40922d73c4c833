"""Great Expectations' own page of a result, Data Docs, as one file that loads nothing."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

OUTSIDE = tuple(
    re.compile(pattern, re.DOTALL | re.IGNORECASE)
    for pattern in (
        r"<script\b.*?</script>",
        r"<style\b.*?</style>",
        r"<link\b[^>]*>",
        r"<img\b[^>]*>",
        r"<footer\b.*?</footer>",
        r"<nav class=\"navbar.*?</nav>\s*</div>\s*</nav>",
    )
)
"""Scripts, styles and fonts of other hosts, and a logo whose address tells who opens the page."""

STYLE = """
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1.5rem; max-width: 60rem }
h4 { font-size: 1.5rem; margin: 0 } h5 { font-size: 1.05rem; margin: 1.75rem 0 .25rem }
h6 { font-size: .95rem; margin: 1rem 0 .25rem } body { overflow-wrap: anywhere }
table { border-collapse: collapse; font-size: .9rem; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid #8886 }
th:first-child, td:first-child { white-space: nowrap }
.sticky, .card { display: none } .collapse { font-size: .9rem }
.text-success::before { content: "holds" } .text-danger::before { content: "fails"; font-weight: 700 }
a[href*="expectations/"], a[data-toggle] { color: inherit; text-decoration: none; pointer-events: none }
</style>"""


def data_docs(result: Any) -> str:
    """Great Expectations' page of the result as one file that loads nothing."""
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view.view import DefaultJinjaPageView

    for item in result.results:
        # texts of the table come from outside and are printed as they are: escaped, they are text and no HTML
        item.result = _escaped(item.result)
        item.exception_info = _escaped(item.exception_info)
        _drop_tracebacks(item.exception_info)
        item.result.pop("unexpected_index_query", None)
    # no time and no run id in the page, so that the same data give the same bytes
    result.meta.pop("run_id", None)
    result.meta.pop("batch_markers", None)
    result.results.sort(key=lambda item: str(item.expectation_config.meta["check"]))
    content = ValidationResultsPageRenderer(run_info_at_end=True).render(result)
    page: Any = DefaultJinjaPageView()
    return alone(str(page.render(content)))


def _drop_tracebacks(info: Any) -> None:
    """Of an expectation's error the message stays; a traceback has this machine's paths."""
    for one in (info, *info.values()):
        if isinstance(one, dict) and "exception_traceback" in one:
            one["exception_traceback"] = ""


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return html.escape(value)
    if isinstance(value, Mapping):
        return {_escaped(key): _escaped(entry) for key, entry in value.items()}
    return [_escaped(entry) for entry in value] if isinstance(value, list) else value


def alone(page: str) -> str:
    """Great Expectations' page as one file that loads nothing, readable without scripts."""
    for outside in OUTSIDE:
        page = outside.sub("", page)
    return page.replace("<head>", f"<head>{STYLE}", 1)
