"""The README: short, its links and pictures are there, its figures are those of metrics/."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FIGURE = re.compile(r"^\|[^|]+\| ([\d.]+) \| `(\w+\.json)` `([\w: ]+)` \|$", re.MULTILINE)
PICTURE = re.compile(r"!\[(.*?)\]\(([^)]+)\)", re.DOTALL)
LINK = re.compile(r"\]\(([^)]+)\)")


def test_the_readme_is_shorter_than_120_lines_and_opens_with_three_sentences() -> None:
    assert len(README.splitlines()) < 120
    opening = README.split("\n\n")[1].replace("\n", " ")
    assert len(re.findall(r"\.(?= |$)", opening)) == 3, opening


def test_every_link_of_the_readme_leads_to_a_file_or_a_folder() -> None:
    links = [link for link in LINK.findall(README) if not link.startswith("http")]
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link.split("#")[0]).exists()] == []


def test_every_picture_says_in_words_what_it_shows() -> None:
    pictures = PICTURE.findall(README)
    assert [Path(path).name for _, path in pictures] == ["report.webp", "family.webp"]
    assert all(len(words.split()) > 4 for words, _ in pictures)


def test_all_pictures_together_are_small() -> None:
    files = [path for path in (ROOT / "docs" / "pictures").rglob("*") if path.suffix in (".png", ".svg", ".webp")]
    sizes = {path.name: path.stat().st_size for path in files}
    assert sum(sizes.values()) <= 300_000, sizes


@pytest.mark.parametrize(("figure", "file", "key"), FIGURE.findall(README))
def test_a_figure_of_the_readme_is_the_one_that_metrics_holds(figure: str, file: str, key: str) -> None:
    """The metrics of the last commit count as well: a run of one's own changes the files before it is committed."""
    digits = len(figure.partition(".")[2])
    now = json.loads((ROOT / "metrics" / file).read_text(encoding="utf-8"))
    held = subprocess.run(["git", "show", f"HEAD:metrics/{file}"], cwd=ROOT, capture_output=True, check=False).stdout
    values = [value_at(metrics, key) for metrics in (now, json.loads(held or "{}")) if metrics]
    assert f"{float(figure):.{digits}f}" in [f"{value:.{digits}f}" for value in values], (file, key, values)


def test_the_table_of_figures_was_read_whole() -> None:
    rows = README.split("## Figures")[1].split("\n## ")[0].count(".json` `")
    assert len(FIGURE.findall(README)) == rows >= 10


def test_the_commands_of_the_readme_are_targets_and_verbs() -> None:
    from densitywatch.cli import app

    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make (run|test|up|down|[a-z]+)\b(?=[ `\n])", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    verbs = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
    named = re.findall(r"bin/densitywatch ([a-z-]+)", README)
    assert named
    assert set(named) <= verbs


def value_at(metrics: dict[str, Any], key: str) -> float:
    """The figure at a key such as `auroc: mnist`."""
    value: Any = metrics
    for part in key.split(": "):
        value = value[part]
    return float(value)
