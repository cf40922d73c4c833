from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from densitywatch.batches import batch_report, gallery
from densitywatch.batches.gallery import heat, nearest, picture
from densitywatch.batches.results import fewest_to_flag, histogram
from densitywatch.batches.score_batch import score_source
from densitywatch.detector import conformal
from densitywatch.errors import ModelError
from densitywatch.params import Params
from densitywatch.text import visible
from tests.detector.standin import Brightness, fill, png
from tests.marks import marks

EVIL = "<img src=x onerror=document.title='owned'>\u202e{{ 7*7 }}\n.png"


@pytest.fixture
def scored(params: Params, tmp_path: Path) -> Path:
    batch = fill(tmp_path / "batch", 30, bright=3)
    (batch / EVIL).write_bytes(png(250))
    (batch / f"cut {EVIL}").write_bytes(png()[:60])
    (batch / "empty.png").write_bytes(b"")
    score_source("batch", params, tmp_path, tmp_path / "out", Brightness())
    return tmp_path / "out"


@pytest.fixture(scope="module")
@marks("browser")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser
        browser.close()


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
    assert "at most 10 in 100 are false alarms" in page
    for count, what in ((36, "files"), (34, "scored"), (4, "flagged as outliers"), (2, "quarantined")):
        assert f"<b>{count}</b>{what}" in page
    assert sum(summary["histogram"]["batch"]) == 34
    assert sum(summary["histogram"]["calibration"]) == 999


def test_the_gallery_holds_every_flagged_image_the_least_usual_first(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "SHOWN", 15)
    monkeypatch.setattr(batch_report, "SHOWN", 15)
    fill(tmp_path / "batch", 20, bright=40)
    score_source("batch", params, tmp_path, tmp_path / "out", Brightness())
    rows = pq.read_table(tmp_path / "out" / "gallery.parquet").to_pylist()
    table = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    assert sorted(row["row"] for row in rows) == list(np.flatnonzero(table.outlier))
    shown, rest = rows[:15], rows[15:]
    assert [row["path"] for row in shown] == [f"odd_{39 - i:04d}.png" for i in range(15)]
    assert all(row["why"] and row["map"] and row["picture"] for row in shown)
    assert all(row["picture"] and row["map"] is None and row["why"] is None for row in rest)
    assert "15 least usual of 40 flagged images" in (tmp_path / "out" / "report.html").read_text()


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
    assert "where it surprises" not in (tmp_path / "out" / "report.html").read_text()


def test_a_colour_batch_has_colour_pictures(params: Params, tmp_path: Path) -> None:
    fill(tmp_path / "batch", 5, bright=2)
    summary = score_source("batch", params, tmp_path, tmp_path / "out", Brightness(channels=3))
    assert (summary["outliers"], summary["changed_to_fit"]) == (2, 7)
    assert "L to RGB" in (tmp_path / "out" / "report.html").read_text()


def test_the_nearest_training_images_are_the_nearest(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    train = rng.integers(0, 256, (50, 1, 6, 6), dtype=np.uint8)
    data = tmp_path / "prepared"
    data.mkdir()
    np.save(data / "train.npy", train)
    np.save(data / "train_labels.npy", np.zeros(50, np.int64))
    counts = {"train": 50, "validation": 0, "calibration": 0, "test": 0}
    info = {"name": "x", "size": 6, "channels": 1, "class_names": [], "digest": "d", "counts": counts}
    (data / "dataset.json").write_text(json.dumps(info))
    images = np.concatenate([train[[7, 30]], rng.integers(0, 256, (5, 1, 6, 6), dtype=np.uint8)])
    found = nearest(images, data)
    assert found is not None
    distance = ((images[:, None].astype(float) - train[None]) ** 2).sum((2, 3, 4))
    assert (found == train[np.argsort(distance, axis=1)[:, :3]]).all()
    assert (found[:2, 0] == train[[7, 30]]).all()
    assert nearest(images[:, :, :5, :5], data) is None
    assert nearest(images, tmp_path / "nowhere") is None


def test_pictures_are_exact_when_small_and_scaled_when_large() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    assert picture(image).startswith(b"\x89PNG")
    large = picture(np.zeros((3, 1000, 1000), np.uint8))
    assert large.startswith(b"\xff\xd8")
    assert len(large) < 20_000
    for values in (np.zeros((9, 9)), np.full((9, 9), np.nan), np.eye(9) * 1e30, -np.ones((9, 9))):
        assert heat(values).startswith(b"\x89PNG")


def test_a_histogram_holds_every_image_whatever_its_score() -> None:
    found = histogram(np.array([-1e300, 0.0, 5.0, 1e300]), np.linspace(0, 10, 100))
    assert found is not None
    assert sum(found["batch"]) == 4
    assert (found["batch"][0], found["batch"][-1]) == (1, 1)
    assert histogram(np.zeros(3), np.zeros(5)) is not None  # all alike


def test_the_page_says_when_a_batch_is_too_large_for_single_outliers_to_be_flagged(
    params: Params, tmp_path: Path
) -> None:
    class Coarse(Brightness):
        calibration = np.linspace(0.0, 100.0, 9)

    fill(tmp_path / "batch", 40, bright=3)
    summary = score_source("batch", params, tmp_path, tmp_path / "out", Coarse())
    assert (summary["outliers"], summary["fewest_to_flag"]) == (0, 43)
    assert "only when 43 or more of its images" in (tmp_path / "out" / "report.html").read_text()
    assert fewest_to_flag(525, 0.1, np.zeros(5999)) == 1
    calibration = np.arange(999.0)
    for images in (10, 100, 1000, 5000):
        few = fewest_to_flag(images, 0.1, calibration)
        assert few is not None
        for count, any_flagged in ((few, True), (few - 1, False)):
            p = np.full(images, 0.9)
            p[:count] = conformal.p_values(calibration, np.full(count, 1e9))
            assert conformal.benjamini_hochberg(p, 0.1).any() == any_flagged


def test_what_would_be_invisible_is_shown_by_its_code() -> None:
    assert visible("a\nb\x1b[31m\u202e\u200bgrün 例") == "a\\nb\\x1b[31m\\u202e\\u200bgrün 例"


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
