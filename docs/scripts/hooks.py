"""What mkdocs runs while it builds the site: pages made from the code, and figures put into pages.

A page says `<!-- {{ figures_of pixelcnn }} -->`, `all_figures`, `detector_figures`, `controls`, `false_discoveries`
or `real_images` where figures of metrics/ go. What stands between that and `<!-- end -->` is for readers on a git host:
the figures take its place.
"""

from __future__ import annotations

import re
from typing import Any

from mkdocs.structure.files import File, Files

from docs.scripts import cli_page, figures, files_page, params_page, python_page
from docs.scripts.from_code import ROOT

PLACES = tuple(f"reference/{name}.md" for name in ("cli", "params", "files", "python", "data"))
"""The pages that have no file in docs/."""
MARK = re.compile(r"<!-- \{\{ (\w+)(?: (\w+))? \}\} -->\n.*?\n<!-- end -->", re.DOTALL)


def generated() -> dict[str, str]:
    """The text of the pages in PLACES."""
    data = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    texts = (cli_page.page(), params_page.page(), files_page.page(), python_page.page(), data)
    return dict(zip(PLACES, texts, strict=True))


def with_figures(text: str) -> str:
    """A page with its tables of figures. Raises KeyError for a mark that nobody fills."""
    tables = {
        "figures_of": figures.of_model,
        "all_figures": figures.of_all,
        "detector_figures": figures.of_detector,
        "false_discoveries": figures.false_discoveries,
        "real_images": figures.real_images,
        "controls": figures.controls,
    }
    return MARK.sub(lambda mark: tables[mark[1]](*([mark[2]] if mark[2] else [])), text)


def on_files(files: Files, config: Any) -> Files:
    for place, text in generated().items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return with_figures(markdown)
