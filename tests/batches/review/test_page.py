"""The review page in a browser of a phone's width."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect


def test_a_person_reviews_with_the_keyboard_in_a_browser(port: int, page: Page, scored: Path) -> None:
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text))
    page.goto(f"http://127.0.0.1:{port}/")
    expect(page.locator("#place")).to_have_text("image 1 of 4, 0 reviewed")
    expect(page.locator("#path")).to_have_text("=<img src=x onerror=document.title='owned'>\\u202e.png")
    expect(page.locator("#picture")).to_have_js_property("naturalWidth", 28)
    expect(page.locator("#map")).to_be_visible()
    page.keyboard.press("o")
    page.keyboard.press("f")
    page.keyboard.press("o")
    expect(page.locator("#place")).to_have_text("image 4 of 4, 3 reviewed")
    expect(page.locator("#precision")).to_have_text("Precision so far: 2 of 3 were outliers.")
    page.keyboard.press("u")  # takes back the last verdict
    expect(page.locator("#place")).to_have_text("image 3 of 4, 2 reviewed")
    page.get_by_role("button", name="Fine").click()
    expect(page.locator("#place")).to_have_text("image 4 of 4, 3 reviewed")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#card")).to_have_attribute("data-verdict", "fine")
    page.reload()
    expect(page.locator("#place")).to_have_text("image 4 of 4, 3 reviewed")  # goes on with the first without a verdict
    assert page.title() == "Review of batch – densitywatch"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert problems == []
    assert [row["verdict"] for row in json.loads((scored / "verdicts.json").read_text())["verdicts"]] == [
        "outlier", "fine", "fine"
    ]  # fmt: skip


def test_the_page_tells_the_person_which_verdict_was_not_saved(
    port: int, page: Page, scored: Path, tmp_path: Path
) -> None:
    page.goto(f"http://127.0.0.1:{port}/")
    expect(page.locator("#place")).to_have_text("image 1 of 4, 0 reviewed", timeout=60_000)
    scored.rename(tmp_path / "moved")
    page.keyboard.press("f")
    trouble = page.locator("#trouble")
    expect(trouble).to_contain_text("Not saved: the verdict on image 1 (", timeout=60_000)
    expect(trouble).to_contain_text("not there any more")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    (tmp_path / "moved").rename(scored)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("f")
    expect(trouble).to_have_text("", timeout=60_000)
    assert json.loads((scored / "verdicts.json").read_text())["verdicts"][0]["verdict"] == "fine"


@pytest.mark.parametrize("width", [390, 1280])
def test_a_person_draws_images_at_random_on_the_page_and_judges_them(port: int, browser: Browser, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"http://127.0.0.1:{port}/")
    expect(page.locator("#kind")).to_have_text(re.compile("^Flagged"), timeout=60_000)
    page.get_by_label("drawn at random").fill("1000")
    page.keyboard.press("f")  # typed into the number's field: no verdict
    page.get_by_role("button", name="Draw").click()
    expect(page.locator("#place")).to_have_text("image 1 of 24, 0 reviewed", timeout=60_000)
    expect(page.locator("#of-draw")).to_have_text("Drawn at random: 24 images, 0 judged, 0 of them outliers.")
    expect(page.locator("#kind")).to_have_text("Flagged, and drawn at random")
    for _ in range(4):
        page.keyboard.press("o")
    expect(page.locator("#kind")).to_have_text("Drawn at random, not flagged", timeout=60_000)
    expect(page.locator("#map")).to_be_hidden()
    expect(page.locator("#picture")).to_have_js_property("naturalWidth", 28)
    page.get_by_role("button", name="Fine").click()
    expect(page.locator("#of-draw")).to_have_text("Drawn at random: 24 images, 5 judged, 4 of them outliers.")
    expect(page.locator("#precision")).to_have_text("Precision so far: 4 of 4 were outliers.")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert problems == []


def test_the_page_says_why_nothing_was_drawn(port: int, page: Page, tmp_path: Path) -> None:
    page.goto(f"http://127.0.0.1:{port}/")
    expect(page.locator("#place")).to_have_text("image 1 of 4, 0 reviewed", timeout=60_000)
    (tmp_path / "batch").rename(tmp_path / "elsewhere")
    page.get_by_role("button", name="Draw").click()
    expect(page.locator("#trouble")).to_contain_text("Nothing was drawn: ", timeout=60_000)
    (tmp_path / "elsewhere").rename(tmp_path / "batch")
