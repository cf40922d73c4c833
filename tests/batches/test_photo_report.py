"""The report of a detector that gives every place of a picture a p-value."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, expect

from densitywatch.batches.levels import in_force, slider_levels
from densitywatch.batches.score_batch import score_source
from densitywatch.detector import conformal
from densitywatch.detector.detector import Scores
from densitywatch.errors import ModelError
from densitywatch.pages import pictures
from densitywatch.params import Params
from tests.detector.local.test_members import fitting_data, made, plates, scratched
from tests.detector.standin import Brightness, fill

EVIL = "<img src=x onerror=document.title='owned'>\u202e{{ 7*7 }}.png"


class Spots(Brightness):
    """An image is the more outlying the brighter its brightest square of 8 x 8 pixels is."""

    size, resize = 64, "stretch"
    false_alarm_rate = 0.05
    digest = "spots-1"
    has_places = True
    calibration = np.linspace(60.0, 120.0, 99)
    place_maxima = calibration

    def _squares(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        side = self.size // 8
        return images.reshape(len(images), self.channels, side, 8, side, 8).mean(axis=(1, 3, 5))

    def score(self, images: NDArray[np.uint8]) -> Scores:
        score = self._squares(images).max((1, 2))
        return replace(super().score(images), score=score, p_value=conformal.p_values(self.calibration, score))

    def surprise_map(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise ModelError("not asked for")

    def place_p_values(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return conformal.place_p_values(self.place_maxima, self._squares(images))


def photo(spot: int = 0, *, shape: tuple[int, int] = (300, 450), seed: int = 0) -> bytes:
    """A grey picture (height, width) with a square of this level, an eighth of each side, one step from the corner."""
    height, width = shape
    pixels = np.random.default_rng(seed).integers(45, 56, shape)
    if spot:
        pixels[height // 8 : height // 4, width // 8 : width // 4] = spot
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def scored(params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 usual pictures, three with spots that are flagged, and a faint one."""
    root = tmp_path_factory.mktemp("photos")
    batch = root / "batch"
    batch.mkdir()
    for i in range(20):
        (batch / f"usual_{i:02d}.png").write_bytes(photo(seed=i))
    for i in range(2):
        (batch / f"spot_{i}.png").write_bytes(photo(240 + i, seed=30 + i))
    (batch / EVIL).write_bytes(photo(250, shape=(400, 96)))
    (batch / "faint.png").write_bytes(photo(116, seed=40))
    score_source("batch", params, root, root / "out", Spots())
    return root / "out"


def test_flagged_pictures_keep_their_shape_and_have_their_areas_outlined(scored: Path) -> None:
    rows = {row["path"]: row for row in pq.read_table(scored / "gallery.parquet").to_pylist()}
    table = pd.read_parquet(scored / "scores.parquet")
    assert sorted(table[table.outlier].path) == sorted([EVIL, "spot_0.png", "spot_1.png"])
    with Image.open(io.BytesIO(rows["spot_0.png"]["photo"])) as shown:
        assert shown.size == (450, 300)
    with Image.open(io.BytesIO(rows["spot_0.png"]["picture"])) as seen:
        assert seen.size == (64, 64)
    p = np.array(rows["spot_0.png"]["place_p"])
    assert np.argwhere(p <= 0.05).tolist() == [[1, 1]]
    page = (scored / "report.html").read_text()
    assert page.count('class="photo"') == 12
    assert page.count(f'<path class="edge" d="{pictures.outline(p <= 0.05)}"/>') == 3
    assert page.count("At most 1 of 100 normal pictures has an area as unusual as this anywhere.") == 3
    assert page.count("No area is outlined at 5 %.") == 9
    assert (
        'A normal picture has any area outlined with probability at most <span class="level-name">5 %</span>.' in page
    )
    assert "Pictures are shown with 512 pixels a side at most. The detector sees 64 x 64." in page


def test_the_columns_of_the_scores_are_those_of_any_detector(scored: Path) -> None:
    names = ["path", "sha256", "status", "reason", "bits_per_dim", "score", "p_value", "outlier"]
    assert pq.read_schema(scored / "scores.parquet").names == names


def test_the_slider_counts_the_whole_batch(scored: Path) -> None:
    page = (scored / "report.html").read_text()
    p = pd.read_parquet(scored / "scores.parquet").p_value.to_numpy()
    levels = slider_levels(in_force(0.05, 99), 99)
    (counts,) = re.findall(r'data-counts="([\d ]+)"', page)
    assert [int(count) for count in counts.split()] == [int((p <= level).sum()) for level in levels]


def test_a_rate_that_is_out_of_reach_is_said_to_be_so(params: Params, tmp_path: Path) -> None:
    class Few(Spots):
        false_alarm_rate = 0.001

    (tmp_path / "batch").mkdir()
    (tmp_path / "batch" / "spot.png").write_bytes(photo(240))
    score_source("batch", params, tmp_path, tmp_path / "out", Few())
    page = (tmp_path / "out" / "report.html").read_text()
    assert ">1 %</span>. 99 calibration images do not reach the 0.1 %" in page


def test_fifty_pictures_of_noise_stay_below_the_limit(params: Params, tmp_path: Path) -> None:
    (tmp_path / "batch").mkdir()
    rng = np.random.default_rng(0)
    for i in range(50):
        noise = rng.integers(60, 256, (520, 700, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "batch" / f"{i:02d}.png", compress_level=0)
    score_source("batch", params, tmp_path, tmp_path / "out", Spots(channels=3))
    rows = pq.read_table(tmp_path / "out" / "gallery.parquet").to_pylist()
    assert len(rows) == 50
    for row in rows:
        assert len(row["photo"]) <= 60_000
        with Image.open(io.BytesIO(row["photo"])) as shown:
            assert max(shown.size) <= 512
    assert (tmp_path / "out" / "report.html").stat().st_size < 5_000_000


def test_a_batch_of_a_real_local_detector_is_the_same_bytes_twice(params: Params, tmp_path: Path) -> None:
    detector = made(fitting_data(), ("own_place",), plates(99, seed=50))
    images = np.concatenate([plates(20, seed=51), scratched(plates(4, seed=52))])
    (tmp_path / "batch").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image[0]).save(tmp_path / "batch" / f"{i:02d}.png")
    for out in ("one", "two"):
        score_source("batch", params, tmp_path, tmp_path / out, detector)
    for name in ("scores.parquet", "summary.json", "gallery.parquet", "report.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    rows = pq.read_table(tmp_path / "one" / "gallery.parquet").to_pylist()
    page = (tmp_path / "one" / "report.html").read_text()
    areas = detector.outlined(images, 0.05)
    for row in rows:
        at = int(row["path"][:2])
        assert ((np.array(row["place_p"]) <= 0.05) == areas[at]).all()
        assert f'd="{pictures.outline(areas[at])}"' in page
        with Image.open(io.BytesIO(row["photo"])) as shown:  # a small picture keeps every pixel
            assert (np.asarray(shown) == images[at, 0]).all()


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_the_map_comes_and_goes_by_key_and_tap(scored: Path, browser: Browser, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
    page.goto((scored / "report.html").as_uri())
    shown = page.locator("#gallery img.map:visible")
    expect(shown).to_have_count(12)
    expect(page.get_by_label("map over the pictures")).to_be_visible()
    page.keyboard.press("m")
    expect(shown).to_have_count(0)
    first = page.locator("#gallery .photo").first
    first.click()
    expect(shown).to_have_count(1)
    page.keyboard.press("Enter")  # the tapped picture has the focus
    expect(shown).to_have_count(0)
    page.get_by_label("map over the pictures").check()
    expect(shown).to_have_count(12)
    page.get_by_label("Filter by name or reason").press_sequentially("m")
    expect(page.get_by_label("map over the pictures")).to_be_checked()
    page.get_by_label("Filter by name or reason").fill("")
    box = first.bounding_box()
    assert box is not None
    assert box["width"] <= width
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert page.title() == "batch – densitywatch"
    assert problems == []
    page.close()


@pytest.mark.browser
def test_the_slider_shows_other_levels_and_goes_back_to_what_was_promised(scored: Path, browser: Browser) -> None:
    page = browser.new_page()
    page.goto((scored / "report.html").as_uri())
    flagged, says = page.locator("#gallery li.flagged"), page.locator("#level-says")
    outlined = "[...document.querySelectorAll('.edge')].filter((edge) => edge.getAttribute('d')).length"
    expect(says).to_contain_text("In force: the flags that the promise above is about")
    assert page.get_by_role("button", name="as promised").is_disabled()
    promised = page.locator(".edge").first.get_attribute("d")
    levels = slider_levels(in_force(0.05, 99), 99)
    page.locator("#slider").focus()
    page.keyboard.press("ArrowRight")
    assert levels[levels.index(0.05) + 1] == 0.1
    expect(says).to_contain_text("At 10 %, 4 of all 24 images would be flagged, 4 of them among those below.")
    expect(says).to_contain_text("This is not the rate of the batch")
    expect(flagged).to_have_count(4)
    expect(page.locator("#gallery li", has_text="faint.png").locator(".state")).to_have_text("flagged at 10 %")
    assert page.evaluate(outlined) == 4
    page.get_by_label("flagged only").check()
    assert page.locator("#gallery li:visible").count() == 4
    page.get_by_role("button", name="as promised").click()
    expect(flagged).to_have_count(3)
    assert page.locator("#gallery li:visible").count() == 3
    assert page.evaluate(outlined) == 3
    # the page draws the borders place by place; they are those of the path that came with it
    bits = re.findall(r"M(\d+) (\d+)([hv])1", page.locator(".edge").first.get_attribute("d") or "")
    assert sorted(bits) == sorted([("1", "1", "h"), ("1", "2", "h"), ("1", "1", "v"), ("2", "1", "v")])
    assert promised == "M1 1h1M1 2h1M1 1v1M2 1v1"
    page.close()


@pytest.mark.browser
def test_without_a_script_the_flagged_pictures_are_there(scored: Path, browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((scored / "report.html").as_uri())
    assert page.locator("#gallery li.flagged .photo img.map:visible").count() == 3
    assert not page.locator("#level").is_visible()
    assert not page.locator("#map-tools").is_visible()
    context.close()


@pytest.mark.browser
def test_a_detector_without_places_has_the_slider_and_its_surprise_map(
    params: Params, tmp_path: Path, browser: Browser
) -> None:
    fill(tmp_path / "batch", 20, bright=3)
    score_source("batch", params, tmp_path, tmp_path / "out", Brightness())
    page = browser.new_page()
    page.goto((tmp_path / "out" / "report.html").as_uri())
    assert page.get_by_text("where it is surprising (bright)").count() == 12
    assert page.locator(".photo").count() == page.locator("#map-tools").count() == 0
    page.locator("#slider").focus()
    page.keyboard.press("End")
    expect(page.locator("#level-says")).to_contain_text("At 50 %")
    page.close()
