"""What the review answers when something is wrong, and what it reads before it knows who asks."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from playwright.sync_api import expect, sync_playwright

from densitywatch import files
from densitywatch.batches.batch_report import flagged
from densitywatch.batches.review.review import create_app, give_verdicts
from densitywatch.batches.score_batch import score_source
from densitywatch.batches.verdicts import read_verdicts
from densitywatch.errors import DataError
from densitywatch.params import Params
from tests.detector.standin import Brightness, fill


@pytest.fixture
def scored(params: Params, tmp_path: Path) -> Path:
    """Results with two flagged images."""
    fill(tmp_path / "batch", 12, bright=2)
    score_source("batch", params, tmp_path, tmp_path / "data/outliers/batch", Brightness())
    return tmp_path / "data/outliers/batch"


@pytest.fixture
def port(scored: Path) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(create_app(scored), host="127.0.0.1", port=number, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield number
    server.should_exit = True
    thread.join()


@pytest.fixture
def client(port: int) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
        yield client


def token(client: httpx.Client) -> str:
    return client.get("/").text.split('const token = "')[1].split('"')[0]


def answer_to(port: int, *headers: str, body: bytes) -> tuple[str, int]:
    """The status line of the answer to POST /verdicts/0, and how much of `body`, again and again, it took before."""
    lines = ["POST /verdicts/0 HTTP/1.1", f"Host: 127.0.0.1:{port}", *headers]
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        connection.settimeout(0.2)
        answer = b""
        deadline = time.monotonic() + 60
        while b"\r\n" not in answer and time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError, ConnectionError):
                sent += connection.send(body)
            try:
                answer += connection.recv(1 << 16)
            except TimeoutError:
                continue
            except ConnectionError:
                break
    return answer.split(b"\r\n")[0].decode(), sent


def test_nothing_of_a_body_is_waited_for_before_the_token_is_right(port: int) -> None:
    status, sent = answer_to(port, "Content-Length: 1000000000000", body=b" " * 1000)
    assert status == "HTTP/1.1 403 Forbidden"
    assert sent < 2_000_000
    chunked = b"3e8\r\n" + b" " * 1000 + b"\r\n"
    status, sent = answer_to(port, "Transfer-Encoding: chunked", body=chunked)
    assert status == "HTTP/1.1 403 Forbidden"


def test_a_body_that_is_too_long_is_refused_by_its_length_or_as_it_comes(port: int, client: httpx.Client) -> None:
    right = f"X-Review-Token: {token(client)}"
    status, sent = answer_to(port, right, "Content-Length: 1000000000000", body=b" " * 1000)
    assert status.startswith("HTTP/1.1 413")
    assert sent < 2_000_000
    chunked = b"3e8\r\n" + b" " * 1000 + b"\r\n"
    status, _ = answer_to(port, right, "Transfer-Encoding: chunked", body=chunked)
    assert status.startswith("HTTP/1.1 413")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"verdict": NaN}', 422),
        (b'{"verdict": "\\ud800"}', 422),
        (b'{"verdict": {"a": []}}', 422),
        (b'{"other": 1}', 422),
        (b"[]", 422),
        (b"[" * 1000, 400),
        (b"\xff\xfe", 400),
        (b"", 400),
    ],
)
def test_whatever_is_sent_is_answered_with_one_sentence(
    client: httpx.Client, scored: Path, body: bytes, status: int
) -> None:
    answer = client.post("/verdicts/0", content=body, headers={"X-Review-Token": token(client)})
    assert answer.status_code == status
    assert answer.json()["detail"].startswith("a verdict is ")
    assert client.get("/items/abc").json()["detail"] == "images are asked for by their number"
    assert read_verdicts(scored) == {}


@pytest.mark.parametrize("what", ["moved", "deleted", "all deleted", "another batch's"])
def test_a_verdict_on_results_that_are_gone_is_not_saved_and_says_so(
    client: httpx.Client, scored: Path, params: Params, tmp_path: Path, what: str
) -> None:
    header = {"X-Review-Token": token(client)}
    if what == "deleted":
        shutil.rmtree(scored)
    elif what == "all deleted":
        shutil.rmtree(scored.parent)
    else:
        scored.rename(tmp_path / "elsewhere")
    if what == "another batch's":
        fill(tmp_path / "other", 12, bright=2)
        score_source("other", params, tmp_path, scored, Brightness())
    answer = client.post("/verdicts/0", json={"verdict": "fine"}, headers=header)
    assert answer.status_code == 409
    assert "not there any more, so nothing was saved" in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]
    if what == "another batch's":
        assert not (scored / "verdicts.json").exists()
    else:
        assert not scored.exists(), "no new folder with verdicts alone"


@pytest.mark.parametrize(
    ("number", "status", "complaint"),
    [
        (errno.ENOSPC, 507, "the disk is full, nothing was saved"),
        (errno.EROFS, 500, "nothing was saved: "),
    ],
)
def test_a_verdict_that_cannot_be_written_is_answered_as_such(
    client: httpx.Client, scored: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: int, complaint: str
) -> None:
    header = {"X-Review-Token": token(client)}
    real = Path.write_bytes

    def fail(path: Path, data: Any) -> int:
        if "verdicts.json" in path.name:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", fail)
    answer = client.post("/verdicts/0", json={"verdict": "fine"}, headers=header)
    assert answer.status_code == status
    assert complaint in answer.json()["detail"]
    assert read_verdicts(scored) == {}
    monkeypatch.undo()
    assert client.post("/verdicts/0", json={"verdict": "fine"}, headers=header).status_code == 200


def test_a_verdict_is_on_the_disk_before_it_is_answered(scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real_sync, real_replace = os.fsync, Path.replace

    def sync(descriptor: int) -> None:
        order.append(Path(f"/proc/self/fd/{descriptor}").readlink().name.split(".densitywatch")[0])
        real_sync(descriptor)

    def replace(path: Path, target: Path) -> Path:
        order.append("renamed")
        return real_replace(path, target)

    monkeypatch.setattr(files.os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    give_verdicts(scored, {next(flagged(scored)): "fine"})
    assert order == [".verdicts.json", "renamed", "batch"]


def test_a_report_that_cannot_be_renewed_costs_no_verdict_and_is_named_with_the_next_answer(
    client: httpx.Client, scored: Path
) -> None:
    header = {"X-Review-Token": token(client)}
    (scored / "scores.parquet").write_bytes(b"cut off")
    assert client.post("/verdicts/0", json={"verdict": "fine"}, headers=header).status_code == 200
    deadline = time.monotonic() + 60
    while True:
        answer = client.post("/verdicts/1", json={"verdict": "outlier"}, headers=header)
        assert answer.status_code == 200
        if answer.json()["trouble"]:
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert answer.json()["trouble"].startswith("The verdicts are saved, the report is not: ")
    assert sorted(read_verdicts(scored).values()) == ["fine", "outlier"]


def test_the_page_tells_the_person_which_verdict_was_not_saved(port: int, scored: Path, tmp_path: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.goto(f"http://127.0.0.1:{port}/")
        expect(page.locator("#place")).to_have_text("image 1 of 2, 0 reviewed", timeout=60_000)
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
        browser.close()
    assert json.loads((scored / "verdicts.json").read_text())["verdicts"][0]["verdict"] == "fine"


def test_a_review_of_damaged_results_is_refused_in_one_sentence(scored: Path) -> None:
    (scored / "gallery.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(DataError, match="score the batch again"):
        create_app(scored)
