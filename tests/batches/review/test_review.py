from __future__ import annotations

import csv
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from playwright.sync_api import Page, expect, sync_playwright

from densitywatch.batches.batch_report import flagged
from densitywatch.batches.review.review import batch_folder, collect, create_app, give_verdicts
from densitywatch.batches.score_batch import score_source
from densitywatch.batches.verdict_table import read_csv, write_csv
from densitywatch.batches.verdicts import precision, read_verdicts
from densitywatch.errors import DataError
from densitywatch.params import Params
from tests.detector.standin import Brightness, fill, png

BASE = "http://127.0.0.1"


@pytest.fixture
def scored(params: Params, tmp_path: Path) -> Path:
    """Results with four flagged images, one of them with a name that is markup."""
    batch = fill(tmp_path / "batch", 20, bright=3)
    (batch / "=<img src=x onerror=document.title='owned'>\u202e.png").write_bytes(png(250))
    score_source("batch", params, tmp_path, tmp_path / "data/outliers/batch", Brightness())
    return tmp_path / "data/outliers/batch"


@pytest.fixture
def address(scored: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(create_app(scored), host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"{BASE}:{port}/"
    server.should_exit = True
    thread.join()


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, trust_env=False) as client:
        yield client


def token(client: httpx.Client) -> dict[str, str]:
    page = client.get("/").text
    return {"X-Review-Token": page.split('const token = "')[1].split('"')[0]}


def test_a_verdict_stays_with_the_batch_and_feeds_the_report(client: httpx.Client, scored: Path) -> None:
    header = token(client)
    for index, verdict in enumerate(["outlier", "fine", "outlier"]):
        answer = client.post(f"/verdicts/{index}", json={"verdict": verdict}, headers=header)
        assert answer.status_code == 200
    assert answer.json()["verdicts"] == ["outlier", "fine", "outlier", None]
    assert answer.json()["precision"]["precision"] == pytest.approx(2 / 3)
    assert sorted(read_verdicts(scored).values()) == ["fine", "outlier", "outlier"]
    deadline = time.monotonic() + 20
    while "2 of 3 reviewed flagged images were outliers: 67 %" not in (scored / "report.html").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    client.post("/verdicts/1", json={"verdict": None}, headers=header)
    assert sorted(read_verdicts(scored).values()) == ["outlier", "outlier"]


def test_only_the_page_itself_on_this_machine_may_judge_or_look(client: httpx.Client, scored: Path) -> None:
    assert client.post("/verdicts/0", json={"verdict": "fine"}).status_code == 403
    assert client.post("/verdicts/0", json={"verdict": "fine"}, headers={"X-Review-Token": b"\xe9"}).status_code == 403
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/items/0", headers={"Host": "evil.example:8765"}).status_code == 400
    assert read_verdicts(scored) == {}
    assert "default-src 'none'" in client.get("/").headers["Content-Security-Policy"]


def test_wrong_requests_are_answered_with_a_sentence(client: httpx.Client) -> None:
    header = token(client)
    assert client.get("/items/4").json()["detail"] == "there are 4 flagged images, from 0"
    assert client.get("/items/-1").status_code == 404
    assert client.post("/verdicts/99", json={"verdict": "fine"}, headers=header).status_code == 404
    wrong = client.post("/verdicts/0", json={"verdict": "maybe"}, headers=header)
    assert wrong.status_code == 422
    assert "'outlier' or 'fine'" in wrong.text


def table_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_goes_out_and_comes_back_with_verdicts(scored: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    assert write_csv(scored, table) == 4
    rows = table_rows(table)
    assert [row["number"] for row in rows] == ["0", "1", "2", "3"]
    assert rows[0]["path"].startswith("'=<img")
    rows[0]["verdict"], rows[2]["verdict"] = "outlier", " Fine "
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    assert read_csv(scored, table) == 2
    assert sorted(read_verdicts(scored).values()) == ["fine", "outlier"]
    write_csv(scored, table)
    assert [row["verdict"] for row in table_rows(table)] == ["outlier", "", "fine", ""]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("number,verdict,sha256\n0,fine,0000\n", "line 2: no flagged image of this batch"),
        ("number,verdict,sha256\n77,fine,0000\n", "line 2: no flagged image of this batch"),
        ("number,verdict,sha256\n{number},perhaps,{digest}\n", "line 2: 'perhaps' is no verdict"),
        ("\0\0", "not a table of verdicts"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_and_nothing_is_taken(
    scored: Path, tmp_path: Path, text: str, complaint: str
) -> None:
    write_csv(scored, tmp_path / "good.csv")
    digest = table_rows(tmp_path / "good.csv")[0]["sha256"]
    table = tmp_path / "table.csv"
    table.write_text(text.format(number=0, digest=digest))
    with pytest.raises(DataError, match=complaint):
        read_csv(scored, table)
    assert read_verdicts(scored) == {}
    with pytest.raises(DataError, match="not a readable CSV file"):
        read_csv(scored, tmp_path / "missing.csv")


def test_reviewed_originals_are_collected_by_verdict_and_once(scored: Path, tmp_path: Path) -> None:
    keys = list(flagged(scored))
    give_verdicts(scored, {keys[0]: "outlier", keys[1]: "fine", keys[2]: "fine"})
    target = tmp_path / "kept"
    for _ in range(2):
        assert collect(scored, target, tmp_path) == {"outlier": 1, "fine": 2}
    names = sorted(path.name for path in target.glob("*/*"))
    assert names == sorted(f"{digest}.png" for _, digest in keys[:3])
    original = (tmp_path / "batch" / keys[1][0]).read_bytes()
    assert (target / "fine" / f"{keys[1][1]}.png").read_bytes() == original
    give_verdicts(scored, {keys[0]: None, keys[1]: "outlier"})
    assert collect(scored, target, tmp_path) == {"outlier": 1, "fine": 1}
    assert {path.relative_to(target).as_posix() for path in target.glob("*/*")} == {
        f"outlier/{keys[1][1]}.png", f"fine/{keys[2][1]}.png"
    }  # fmt: skip
    give_verdicts(scored, {keys[0]: "fine"})
    (tmp_path / "batch" / keys[1][0]).unlink()
    give_verdicts(scored, {keys[1]: "fine"})
    with pytest.raises(DataError, match="1 of 3 reviewed images are not there any more"):
        collect(scored, target, tmp_path)
    assert (target / "outlier" / f"{keys[1][1]}.png").read_bytes() == original, "the only copy left stays"


def test_a_batch_is_found_by_name_or_path_and_an_unknown_one_lists_those_there(
    scored: Path, params: Params, tmp_path: Path
) -> None:
    assert batch_folder("batch", params, tmp_path) == scored
    assert batch_folder(str(scored), params, tmp_path) == scored
    with pytest.raises(DataError, match=r"no results of a batch 'other'.*there is: batch"):
        batch_folder("other", params, tmp_path)
    with pytest.raises(DataError, match="no results of a batch"):
        batch_folder("../..", params, tmp_path)


def test_verdicts_that_cannot_be_read_are_not_overwritten(scored: Path) -> None:
    (scored / "verdicts.json").write_text('{"verdicts": [{"path": "a", "sha')
    with pytest.raises(DataError, match="mend it or move it away"):
        give_verdicts(scored, {("a", "b"): "fine"})
    assert (scored / "verdicts.json").read_text().endswith('"sha')


def test_precision_comes_with_an_interval() -> None:
    assert precision([None, None]) is None
    some = precision(["outlier"] * 8 + ["fine"] * 2)
    assert some is not None
    assert (some["reviewed"], some["outliers"]) == (10, 8)
    assert 0.4 < some["low"] < 0.8 < some["high"] < 1.0
    assert precision(["fine"])["low"] == 0.0  # type: ignore[index]


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 390, "height": 800})
        browser.close()


def test_a_person_reviews_with_the_keyboard_in_a_browser(address: str, page: Page, scored: Path) -> None:
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text))
    page.goto(address)
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
