"""What the review's server answers, also when something is wrong, and what it reads before it knows who asks."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from densitywatch.batches.review.server import create_app
from densitywatch.batches.score_batch import score_source
from densitywatch.batches.verdicts import read_verdicts
from densitywatch.errors import DataError
from densitywatch.params import Params
from tests.detector.standin import Brightness, fill


def test_a_verdict_stays_with_the_batch_and_feeds_the_report(
    client: httpx.Client, header: dict[str, str], scored: Path
) -> None:
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


def test_wrong_requests_are_answered_with_a_sentence(client: httpx.Client, header: dict[str, str]) -> None:
    assert client.get("/items/4").json()["detail"] == "there are 4 images to judge, from 0"
    assert client.get("/items/-1").status_code == 404
    assert client.post("/verdicts/99", json={"verdict": "fine"}, headers=header).status_code == 404
    wrong = client.post("/verdicts/0", json={"verdict": "maybe"}, headers=header)
    assert wrong.status_code == 422
    assert "'outlier' or 'fine'" in wrong.text


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


def test_a_body_that_is_too_long_is_refused_by_its_length_or_as_it_comes(port: int, header: dict[str, str]) -> None:
    right = f"X-Review-Token: {header['X-Review-Token']}"
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
    client: httpx.Client, header: dict[str, str], scored: Path, body: bytes, status: int
) -> None:
    answer = client.post("/verdicts/0", content=body, headers=header)
    assert answer.status_code == status
    assert answer.json()["detail"].startswith("a verdict is ")
    assert client.get("/items/abc").json()["detail"] == "images are asked for by their number"
    assert read_verdicts(scored) == {}


@pytest.mark.parametrize("what", ["moved", "deleted", "all deleted", "another batch's"])
def test_a_verdict_on_results_that_are_gone_is_not_saved_and_says_so(
    client: httpx.Client, header: dict[str, str], scored: Path, params: Params, tmp_path: Path, what: str
) -> None:
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
    client: httpx.Client,
    header: dict[str, str],
    scored: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    status: int,
    complaint: str,
) -> None:
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


def test_a_report_that_cannot_be_renewed_costs_no_verdict_and_is_named_with_the_next_answer(
    client: httpx.Client, header: dict[str, str], scored: Path
) -> None:
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


def test_a_review_of_damaged_results_is_refused_in_one_sentence(scored: Path) -> None:
    (scored / "gallery.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(DataError, match="score the batch again"):
        create_app(scored)
