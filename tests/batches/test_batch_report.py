from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from densitywatch.batches.score_batch import score_source
from densitywatch.errors import ModelError
from densitywatch.params import Params
from densitywatch.text import visible
from tests.detector.standin import Brightness, fill, png

EVIL = "<img src=x onerror=document.title='owned'>\u202e{{ 7*7 }}\n.png"


@pytest.fixture
def scored(params: Params, tmp_path: Path) -> Path:
    batch = fill(tmp_path / "batch", 30, bright=3)
    (batch / EVIL).write_bytes(png(250))
    (batch / f"cut {EVIL}").write_bytes(png()[:60])
    (batch / "empty.png").write_bytes(b"")
    score_source("batch", params, tmp_path, tmp_path / "out", Brightness())
    return tmp_path / "out"


@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_opens_from_disk_filters_sorts_and_fits_a_phone(scored: Path, browser: Browser, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text))
    page.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
    page.goto((scored / "report.html").as_uri())
    cards = page.locator("#gallery li")
    expect(cards).to_have_count(12)
    assert page.locator("#gallery li.flagged").count() == 4
    expect(cards.first.locator(".path")).to_have_text(visible(EVIL))
    page.get_by_label("flagged only").check()
    assert page.locator("#gallery li:visible").count() == 4
    page.get_by_label("Sort by").select_option("name")
    assert page.locator("#gallery li:visible").nth(1).locator(".path").inner_text() == "odd_0000.png"
    page.get_by_label("Filter by name or reason").fill("ODD_0002")
    assert page.locator("#gallery li:visible").count() == 1
    page.get_by_label("Filter by name or reason").fill("no such name")
    expect(page.get_by_text("No image matches the filter.")).to_be_visible()
    page.get_by_label("Filter the quarantine").fill("file is empty")
    assert page.locator("#quarantine tbody tr:visible").count() == 1
    page.get_by_label("Filter the quarantine").fill("")
    page.get_by_role("button", name="Reason").click()
    assert page.locator("#quarantine tbody tr").first.inner_text().startswith("cut <img")
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.title() == "batch – densitywatch"
    assert problems == []
    page.close()


def test_everything_is_inside_the_one_file(scored: Path) -> None:
    page = (scored / "report.html").read_text()
    assert re.findall(r"""(?:src|href)=["']?(?!data:)([^"' >]+)""", page.replace("&lt;", "<").split("<main>")[0]) == []
    assert page.count("<script") == 1
    assert set(re.findall(r'<img src="(.{10})', page)) == {"data:image"}
    assert "49\n" not in page


def test_the_page_gives_counts_promise_and_histogram(scored: Path) -> None:
    page = (scored / "report.html").read_text()
    summary = json.loads((scored / "summary.json").read_text())
    assert "On average over many batches, at most 10 in 100 of a batch" in page
    for count, what in ((36, "files"), (34, "scored"), (4, "flagged as outliers"), (2, "quarantined")):
        assert f"<b>{count}</b>{what}" in page
    assert sum(summary["histogram"]["batch"]) == 34
    assert sum(summary["histogram"]["calibration"]) == 999


def test_a_batch_without_outliers_shows_what_came_closest(params: Params, tmp_path: Path) -> None:
    fill(tmp_path / "batch", 30)
    score_source("batch", params, tmp_path, tmp_path / "out", Brightness())
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Nothing was flagged; these came closest." in page
    assert page.count("<li data-rank") == 12


def test_a_detector_without_maps_gives_a_report_without_maps(params: Params, tmp_path: Path) -> None:
    class Blind(Brightness):
        def surprise_map(self, images: object) -> object:  # type: ignore[override]
            raise ModelError("this detector has no exact density model")

    fill(tmp_path / "batch", 5, bright=2)
    score_source("batch", params, tmp_path, tmp_path / "out", Blind())
    assert "where it is surprising" not in (tmp_path / "out" / "report.html").read_text()


def test_a_colour_batch_has_colour_pictures(params: Params, tmp_path: Path) -> None:
    fill(tmp_path / "batch", 5, bright=2)
    summary = score_source("batch", params, tmp_path, tmp_path / "out", Brightness(channels=3))
    assert (summary["outliers"], summary["changed_to_fit"]) == (2, 7)
    assert "L to RGB" in (tmp_path / "out" / "report.html").read_text()


def test_the_page_says_when_a_batch_is_too_large_for_single_outliers_to_be_flagged(
    params: Params, tmp_path: Path
) -> None:
    class Coarse(Brightness):
        calibration = np.linspace(0.0, 100.0, 9)

    fill(tmp_path / "batch", 40, bright=3)
    summary = score_source("batch", params, tmp_path, tmp_path / "out", Coarse())
    assert (summary["outliers"], summary["fewest_to_flag"]) == (0, 43)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Images are flagged only together: in the batch, 43 that are less usual than every calibration image" in page


def test_the_page_says_in_one_line_what_was_skipped(params: Params, tmp_path: Path) -> None:
    batch = fill(tmp_path / "batch", 12, bright=1)
    for name in (".DS_Store", "._normal_0000.png", "._x.png", "Thumbs.db", "Icon\r", "a.crc", "readme.txt", "_SUCCESS"):
        (batch / name).write_text("left behind")
    (batch / "__MACOSX<b>").mkdir()
    score_source("batch", params, tmp_path, tmp_path / "out", Brightness())
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["skipped"] == sum(summary["skipped_kinds"].values()) == 8
    page = (tmp_path / "out" / "report.html").read_text()
    (line,) = [line for line in page.splitlines() if 'id="skipped"' in line]
    assert "Skipped 8 files that are not images by their names: ._* (2), *.crc (1), .DS_Store (1)" in line
    assert "1 other kinds" in line
    assert "\r" not in line
    fill(tmp_path / "clean", 12)
    score_source("clean", params, tmp_path, tmp_path / "none", Brightness())
    assert 'id="skipped"' not in (tmp_path / "none" / "report.html").read_text()
