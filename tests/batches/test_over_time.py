"""The table of batches and the page over time: what a person finds there, and what it costs when many came before."""

from __future__ import annotations

import errno
import json
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from densitywatch.batches import batch_table, over_time
from densitywatch.batches.batch_table import Row, read_table
from densitywatch.batches.results_folder import SUMMARY, batch_name
from densitywatch.batches.score_batch import score_source
from densitywatch.files import full_disk_as_error
from densitywatch.params import Params
from densitywatch.text import visible
from tests.detector.standin import Brightness, fill

EVIL = "<img src=x onerror=document.title='owned'>\u202e{{ 7*7 }}</script><script>document.title='owned'</script>"


def row(number: int, **more: Any) -> Row:
    known = {"files": 100, "scored": 98, "quarantined": 2, "outliers": 0, "drift_p_value": 0.5, "drift_evidence": 0.3}
    name = f"batch-{number:05d}"
    return Row.model_validate(
        {"folder": name, "batch": f"data/inbox/{name}", "time": 1.7e9 + 900 * number, **known, **more}
    )


def write_table(results: Path, rows: list[Row]) -> None:
    results.mkdir(parents=True, exist_ok=True)
    (results / batch_table.TABLE).write_text("".join(one.model_dump_json() + "\n" for one in rows))


def score(name: str, params: Params, root: Path, *, bright: int = 0, files: int = 12) -> dict[str, Any]:
    fill(root / "data" / "inbox" / name, files, bright=bright)
    return score_source(f"data/inbox/{name}", params, root, None, Brightness())


def test_every_scored_batch_gets_a_row_and_a_line_of_the_page(params: Params, tmp_path: Path) -> None:
    score("monday", params, tmp_path)
    score("tuesday", params, tmp_path, bright=3)
    results = tmp_path / "data" / "outliers"
    monday, tuesday = read_table(results)
    assert (monday.folder, monday.files, monday.outliers) == ("monday", 12, 0)
    assert (tuesday.files, tuesday.outliers, tuesday.quarantined) == (15, 3, 0)
    assert monday.seconds is not None
    page = (results / "index.html").read_text()
    assert page.index('<a href="./tuesday/report.html">tuesday</a>') < page.index('<a href="./monday/report.html">')
    assert "3 (20\u00a0%)" in page
    assert (results / "tuesday" / "report.html").is_file()


def test_results_elsewhere_have_no_part_in_the_page(params: Params, tmp_path: Path) -> None:
    fill(tmp_path / "batch", 5)
    score_source("batch", params, tmp_path, tmp_path / "elsewhere" / "out", Brightness())
    assert sorted(path.name for path in (tmp_path / "elsewhere").glob("[!.]*")) == ["out"]
    assert not (tmp_path / "data").exists()


def test_a_batch_scored_again_keeps_its_place_and_what_stays_the_same_adds_no_line(
    params: Params, tmp_path: Path
) -> None:
    score("monday", params, tmp_path)
    score("tuesday", params, tmp_path)
    table = tmp_path / "data" / "outliers" / batch_table.TABLE
    before, lines = read_table(table.parent), table.read_bytes()
    score("tuesday", params, tmp_path)
    assert table.read_bytes() == lines
    score("monday", params, tmp_path, bright=2)
    after = read_table(table.parent)
    assert [(one.folder, one.time) for one in after] == [(one.folder, one.time) for one in before]
    assert after[0].outliers == 2


def test_a_batch_scored_while_the_clock_was_ahead_or_behind_keeps_its_place_among_the_others(tmp_path: Path) -> None:
    for number, (name, moment) in enumerate({"a": 1.7e9, "ahead": 2.05e9, "b": 1.7e9 + 900, "behind": 1e9}.items()):
        rows = batch_table.add_row(tmp_path, row(number, folder=name, time=moment))
        assert rows[-1].folder == name
        assert read_table(tmp_path) == rows
    rows = batch_table.add_row(tmp_path, row(1, folder="ahead", time=1.7e9, outliers=9))
    assert [(one.folder, one.time) for one in rows[1:]] == [("ahead", 2.05e9), ("b", 1.7e9 + 900), ("behind", 1e9)]
    assert read_table(tmp_path) == rows


def test_the_page_shows_the_batch_scored_last_also_when_an_earlier_one_has_a_time_of_the_future(
    params: Params, tmp_path: Path
) -> None:
    results = tmp_path / "data" / "outliers"
    write_table(results, [row(1, folder="ahead", time=2.05e9, drift_alarm=True, drift_moved="brightness up")])
    score("monday", params, tmp_path)
    assert [one.folder for one in read_table(results)] == ["ahead", "monday"]
    page = (results / "index.html").read_text()
    assert page.index("./monday/report.html") < page.index("./ahead/report.html")


def test_results_without_a_row_get_one_and_removed_results_keep_theirs(params: Params, tmp_path: Path) -> None:
    results = tmp_path / "data" / "outliers"
    for number, name in enumerate(("monday", "tuesday", "wednesday")):
        score(name, params, tmp_path)
        os.utime(results / name / SUMMARY, (1.6e9 + number, 1.6e9 + number))
    (results / batch_table.TABLE).unlink()
    assert [(one.folder, one.time) for one in read_table(results)] == [
        ("monday", 1.6e9),
        ("tuesday", 1.6e9 + 1),
        ("wednesday", 1.6e9 + 2),
    ]
    write_table(results, [row(7)])
    assert [one.folder for one in read_table(results)] == ["monday", "tuesday", "wednesday", "batch-00007"]


def test_damaged_lines_are_left_out_and_a_cut_one_spoils_no_other(tmp_path: Path) -> None:
    write_table(tmp_path, [row(1), row(2)])
    table = tmp_path / batch_table.TABLE
    bad = {"folder": "../etc", "batch": "x", "time": 1, "files": 1, "scored": 1}
    counts = {"quarantined": 0, "outliers": 0, "drift_p_value": 1.0}
    hostile = [
        "no json",
        "[]",
        '{"folder": 3}',
        json.dumps(bad | counts),
        json.dumps({**bad, **counts, "folder": ".x"}),
    ]
    hostile += [row(3).model_dump_json().replace('"files":100', '"files":-1'), "\x00\xff", "[" * 100_000]
    with table.open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write("\n".join(hostile) + "\n" + row(4).model_dump_json()[:40])
    rows = read_table(tmp_path)
    assert [one.folder for one in rows] == ["batch-00001", "batch-00002"]
    batch_table.add_row(tmp_path, row(5))
    assert [one.folder for one in read_table(tmp_path)] == ["batch-00001", "batch-00002", "batch-00005"]


def test_two_processes_that_write_at_once_both_leave_their_row(tmp_path: Path) -> None:
    summary = row(0).model_dump()
    threads = [
        threading.Thread(target=over_time.note_batch, args=(tmp_path / f"b{i}", summary, 0.01)) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {one.folder for one in read_table(tmp_path)} == {f"b{i}" for i in range(8)}
    page = (tmp_path / "index.html").read_text()
    assert all(f"./b{i}/report.html" in page for i in range(8))


def test_a_page_that_cannot_be_written_costs_no_result(
    params: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data" / "outliers" / "index.html").mkdir(parents=True)
    summary = score("monday", params, tmp_path)
    assert summary["files"] == 12
    assert "index.html: not written" in capsys.readouterr().err


def test_a_disk_that_is_full_at_the_page_costs_no_result(
    params: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(target: Path, *_: Any, **__: Any) -> None:
        with full_disk_as_error(target):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(over_time, "write_whole", full)
    assert score("monday", params, tmp_path)["files"] == 12
    assert "index.html: not written" in capsys.readouterr().err


def test_no_batch_can_take_the_name_of_the_page() -> None:
    assert re.fullmatch(r"index\.html-[0-9a-f]{8}", batch_name("data/inbox/index.html"))
    assert re.fullmatch(r"INDEX\.HTML-[0-9a-f]{8}", batch_name("data/inbox/INDEX.HTML.zip"))
    assert batch_name("data/inbox/index") == "index"


@pytest.mark.parametrize("name", ["retrain-asked.json", "drift-1.JSON", "x.damaged", "monday.html", "a.json.zip"])
def test_no_batch_is_named_like_a_file_that_is_kept_next_to_the_results(name: str) -> None:
    given = batch_name(f"data/inbox/{name}")
    assert re.fullmatch(rf"{re.escape(name.removesuffix('.zip'))}-[0-9a-f]{{8}}", given)
    assert not given.lower().endswith((".json", ".damaged", ".html"))


def test_a_name_from_outside_is_text_in_the_page_and_in_what_its_script_adds(tmp_path: Path, browser: Browser) -> None:
    many = [row(number) for number in range(over_time.AT_FIRST)]
    odd = {"folder": EVIL.replace("/", "|"), "batch": f"data/inbox/{EVIL}", "drift_moved": EVIL, "drift_since": EVIL}
    newest = row(90, **odd, drift_alarm=True)
    write_table(tmp_path, [row(0, **(odd | {"folder": "oldest"}), drift_alarm=True), *many[1:], row(80), newest])
    over_time.write_page(tmp_path, 0.01)
    page = browser.new_page()
    problems = listen(page)
    page.goto((tmp_path / "index.html").as_uri())
    rows = page.locator("#batches tr")
    last = visible(EVIL).rpartition("/")[2]
    expect(rows.first.locator("a")).to_have_text(last)
    page.get_by_role("button", name="Show 2 older of 2").click()
    expect(rows).to_have_count(over_time.AT_FIRST + 2)
    expect(rows.last.locator("a")).to_have_text(last)
    assert rows.first.locator("a").get_attribute("href").startswith("./%3Cimg%20src%3Dx")
    page.get_by_label("Filter by name, date or drift").fill("<img")
    expect(rows).to_have_count(2)
    assert page.title() == "Batches over time – densitywatch"
    assert page.locator("main img, main script:not([type])").count() == 1  # the page's own
    assert problems == []
    page.close()


def listen(page: Any) -> list[str]:
    """Whatever the page says to its console or loads from elsewhere, as it comes."""
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text))
    page.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
    return problems


@pytest.mark.parametrize("width", [1280, 400])
def test_ten_thousand_batches_open_filter_and_fit_a_phone(tmp_path: Path, browser: Browser, width: int) -> None:
    moved = {"drift_alarm": True, "drift_since": "batch-09000", "drift_moved": "brightness up", "drift_evidence": 1e40}
    write_table(
        tmp_path,
        [row(i, outliers=i % 3, **(moved if i >= 9500 else {})) for i in range(10_000)],
    )
    over_time.write_page(tmp_path, 0.01)
    page = browser.new_page(viewport={"width": width, "height": 900})
    problems = listen(page)
    page.goto((tmp_path / "index.html").as_uri())
    rows = page.locator("#batches tr")
    expect(rows).to_have_count(over_time.AT_FIRST)
    expect(rows.first.locator("a")).to_have_text("batch-09999")
    expect(page.locator("#alarm")).to_contain_text("images are brighter, since batch-09000")
    page.get_by_role("button", name="Show 200 older").click()
    expect(rows).to_have_count(over_time.AT_FIRST + 200)
    page.get_by_label("Filter by name, date or drift").fill("batch-00042")
    expect(rows).to_have_count(1)
    page.get_by_label("Filter by name, date or drift").fill("no such batch")
    expect(page.get_by_text("No batch matches the filter.")).to_be_visible()
    charts = page.locator("svg")
    assert charts.count() == 3
    columns = charts.first.locator("rect.flagged").count()
    assert over_time.COLUMNS / 2 < columns <= over_time.COLUMNS
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert (tmp_path / "index.html").stat().st_size < 3 << 20
    assert problems == []
    page.close()


def test_shares_of_columns_are_those_of_their_images_and_alarms_are_marked() -> None:
    rows = [row(i, scored=10, outliers=0) for i in range(2 * over_time.COLUMNS)]
    rows[2] = row(2, scored=90, outliers=45)  # shares its column with 10 images that are not flagged
    rows[5] = row(5, scored=10, drift_alarm=True)
    rows[6] = row(6, scored=10, drift_alarm=True)
    flagged, quarantined, drift = over_time.charts(rows, 0.01)
    assert flagged["top"] == "50 %"
    assert flagged["bars"][1]["height"] == pytest.approx(flagged["height"] * 0.45 / 0.5)
    assert flagged["bars"][0]["height"] == 0
    assert quarantined["top"] == "2 %"
    step = over_time.WIDTH / over_time.COLUMNS
    assert drift["alarms"] == [(2 * step, 2 * step)]
    # evidence 0.3, and 100 for an alarm, on a scale from 0.01 to 1000 of five decades
    first = float(drift["points"].split()[0].partition(",")[2])
    assert first == pytest.approx(drift["height"] * (1 - 1.477 / 5), abs=0.1)
    assert drift["limit"] == pytest.approx(drift["height"] * (1 - 4 / 5))


def test_batches_that_are_flagged_or_quarantined_whole_have_100_percent_everywhere(tmp_path: Path) -> None:
    write_table(tmp_path, [row(i, scored=98, outliers=98, files=98, quarantined=98) for i in range(2)])
    over_time.write_page(tmp_path, 0.01)
    page = (tmp_path / "index.html").read_text()
    for said in ("flagged, 100&nbsp;%", "quarantined, 100&nbsp;%", "98 (100\u00a0%)", "100 % flagged"):
        assert said in page
    assert "e+" not in page
    assert [over_time.percent(share) for share in (0.0, 0.0123, 0.994, 0.996, 1.0)] == ["0", "1.2", "99", "100", "100"]


def test_batches_in_no_stream_have_no_chart_of_drift_and_words_all_the_same() -> None:
    alone = row(1, drift_evidence=None, drift_p_value=1e-9)
    assert over_time.charts([alone], 0.01) == []
    assert [chart["kind"] for chart in over_time.charts([alone, alone], 0.01)] == ["flagged", "quarantined"]
    assert [len(chart["bars"]) for chart in over_time.charts([row(1), alone, row(2)], 0.01)] == [3, 3, 2]
    assert over_time.drift_in_words(alone, 0.01) == "differs from the calibration images"
    assert over_time.drift_in_words(row(1), 0.01) == "none (evidence 0.3 of 100)"
    assert over_time.drift_in_words(row(1), None) == "none (evidence 0.3)"


def test_a_page_without_batches_says_so(tmp_path: Path) -> None:
    over_time.write_page(tmp_path, 0.01)
    assert "No batch has been scored yet." in (tmp_path / "index.html").read_text()
