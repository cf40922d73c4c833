"""The server of the results, asked directly: what it gives, and all that it must not give."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from pipelines import reports, service_processes
from pipelines.server import OwnPagesOnly
from tests.marks import marks
from tests.pipelines.site import free_port

PAGE = "<!doctype html><title>a page</title>"


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Results and the trained models' report, with things next to them that nobody is to see."""
    results, training = tmp_path / "data" / "outliers", tmp_path / "reports"
    for file in (
        results / "index.html",
        results / "monday" / "report.html",
        results / "monday" / "summary.json",
        results / "monday" / "scores.parquet",
        results / "monday" / "notes.html",
        results / "monday" / "deep" / "report.html",
        results / ".monday.densitywatch" / "report.html",
        results / ".batches.jsonl",
        results / ".look.json",
        results / "drift-0123456789ab.json",
        results / "we ird?&#%\u00e4" / "report.html",
        training / "index.html",
        training / "plots" / "curve.svg",
        training / "plots" / "run.sh",
        training / ".hidden" / "index.html",
        tmp_path / "secret.html",
        tmp_path / "secret" / "report.html",
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(PAGE)
    (results / "outside").symlink_to(tmp_path / "secret")
    (results / "monday" / "validation.html").symlink_to(tmp_path / "secret.html")
    (training / "away.html").symlink_to(tmp_path / "secret.html")
    return results, training


def ask(
    folders: tuple[Path, Path], path: str, method: str = "GET", host: str = "127.0.0.1", origin: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of what the server answers; `path` as it is on the wire."""
    served = OwnPagesOnly(reports.Guarded(reports.app(*folders)), folders[0])
    sent: list[dict[str, Any]] = []

    received = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> dict[str, Any]:
        for message in received:
            return message
        await asyncio.Event().wait()  # the client stays
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    raw, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(raw),
        "raw_path": raw.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", host.encode()), *([(b"origin", origin.encode())] if origin is not None else [])],
        "server": ("127.0.0.1", 1),
        "client": ("127.0.0.1", 2),
    }
    asyncio.run(served(scope, receive, send))  # type: ignore[arg-type]
    head = next(message for message in sent if message["type"] == "http.response.start")
    body = b"".join(message.get("body", b"") for message in sent if message["type"] == "http.response.body")
    return head["status"], {key.decode().lower(): value.decode() for key, value in head["headers"]}, body


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/index.html",
        "/monday/report.html",
        "/monday/summary.json",
        "/monday/scores.parquet",
        "/we%20ird%3F%26%23%25%C3%A4/report.html",
        "/training/",
        "/training/index.html",
        "/training/plots/curve.svg",
    ],
)
def test_what_people_read_is_there(folders: tuple[Path, Path], path: str) -> None:
    status, headers, body = ask(folders, path)
    assert (status, body) == (200, PAGE.encode())
    assert headers["x-content-type-options"] == "nosniff"
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "http" not in policy
    assert ("script-src" in policy) == headers["content-type"].startswith("text/html")
    assert "frame-ancestors 'none'" in policy
    assert ask(folders, path, "HEAD")[::2] == (200, b"")


def test_a_batch_called_training_has_its_report_next_to_that_of_the_trained_models(folders: tuple[Path, Path]) -> None:
    assert ask(folders, "/training/report.html")[0] == 404
    for file in ("report.html", "index.html", "notes.html"):
        (folders[0] / "training").mkdir(exist_ok=True)
        (folders[0] / "training" / file).write_text("of the batch")
    assert ask(folders, "/training/report.html")[::2] == (200, b"of the batch")
    assert ask(folders, "/training/report.html", "HEAD")[::2] == (200, b"")
    assert ask(folders, "/training/report.html", "POST")[0] == 405
    assert ask(folders, "/training/")[::2] == ask(folders, "/training/index.html")[::2] == (200, PAGE.encode())
    assert ask(folders, "/training/notes.html")[0] == ask(folders, "/training/summary.json")[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        "/monday",
        "/monday/",
        "/monday/notes.html",
        "/monday/deep/report.html",
        "/.monday.densitywatch/report.html",
        "/.batches.jsonl",
        "/.look.json",
        "/drift-0123456789ab.json",
        "/outside/report.html",
        "/monday/validation.html",
        "/../../secret.html",
        "/%2e%2e/%2e%2e/secret.html",
        "/monday/../../../secret.html",
        "/monday%2f..%2f..%2f..%2fsecret%2freport.html",
        "/..%5c..%5csecret.html",
        "//etc/passwd",
        "/etc/passwd",
        "/%00",
        "/monday/report.html%00.png",
        "/" + "a" * 5000 + "/report.html",
        "/training/.hidden/index.html",
        "/training/plots/",
        "/training/plots/run.sh",
        "/training/away.html",
        "/training/../index.html/x",
        "/training/%2e%2e/%2e%2e/secret.html",
        "/nothing/report.html",
    ],
)
def test_nothing_else_is(folders: tuple[Path, Path], path: str) -> None:
    status, headers, body = ask(folders, path)
    assert (status, body) == (404, b"nothing here\n")
    assert headers["content-security-policy"].startswith("default-src 'none'")


def test_it_is_read_only_and_only_for_this_machines_name(folders: tuple[Path, Path]) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert ask(folders, "/index.html", method)[0] == 405
    assert ask(folders, "/index.html", host="evil.example")[0] == 400
    assert ask(folders, "/index.html", host="localhost:4400")[0] == 200


def test_before_the_first_batch_it_says_so(tmp_path: Path) -> None:
    nowhere = (tmp_path / "data" / "outliers", tmp_path / "reports")
    assert ask(nowhere, "/")[::2] == (404, b"no batch has been scored yet\n")
    assert ask(nowhere, "/training/")[0] == 404
    assert ask(nowhere, "/training")[0] == 307


def test_a_report_is_linked_where_it_is_served_and_as_a_file_otherwise(
    project_root: Path, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folders[0] / "we ird?&#%\u00e4"
    (tmp_path / "params.yaml").write_bytes((project_root / "params.yaml").read_bytes())
    assert reports.page_of(folder, tmp_path) == (folder / "report.html").as_uri()
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "addresses.json").write_text(json.dumps({"Reports": "http://127.0.0.1:4400"}))
    assert reports.page_of(folder, tmp_path).startswith("file://"), "the server is not this checkout's"
    own = {"name": "reports", "pid": 1, "created": 0.0, "log": ""}
    (tmp_path / "var" / "services.json").write_text(json.dumps([own]))
    assert reports.page_of(folder, tmp_path).startswith("file://"), "another process has its number now"
    monkeypatch.setattr(service_processes, "find", lambda entry: entry["pid"] == 1 or None)
    assert reports.page_of(folder, tmp_path) == "http://127.0.0.1:4400/we%20ird%3F%26%23%25%C3%A4/report.html"
    assert reports.page_of(tmp_path / "elsewhere", tmp_path).startswith("file://")


@pytest.fixture
@marks("server")
def running(folders: tuple[Path, Path], tmp_path: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The server as `make up` starts it; gives its address."""
    port = free_port()
    monkeypatch.setenv("PYTHONPATH", str(project_root))  # `make up` starts it in the checkout
    process = service_processes.start(tmp_path, reports.NAME, reports.command(port, *folders))
    try:
        service_processes.wait_until_it_answers(tmp_path, reports.NAME, f"http://127.0.0.1:{port}/health", port)
        yield f"http://127.0.0.1:{port}"
    finally:
        service_processes.end(service_processes.find(service_processes.noted(tmp_path)[-1]))  # type: ignore[arg-type]
        process.wait()


def test_a_browser_opens_a_page_from_it_and_a_script_from_outside_does_not_run(
    running: str, folders: tuple[Path, Path], browser: Any
) -> None:
    script = "<script>document.title = 'its own'</script>"
    outside = "<script src='data:text/javascript,document.title=1'></script><img src='http://127.0.0.1:9/x.png'>"
    (folders[0] / "monday" / "report.html").write_text(f"<!doctype html><title>a</title>{script}{outside}")
    page = browser.new_page()
    asked: list[str] = []
    page.on("requestfinished", lambda request: asked.append(request.url))
    page.goto(f"{running}/monday/report.html")
    page.wait_for_load_state("networkidle")
    assert page.title() == "its own"
    assert asked == [f"{running}/monday/report.html"]
    page.close()


@pytest.mark.parametrize("origin", ["http://[", "http://example.com", "null", "\u00ff"])
def test_an_origin_that_is_another_place_or_none_at_all_is_refused(folders: tuple[Path, Path], origin: str) -> None:
    assert ask(folders, "/index.html", origin=origin)[0] == 403
    assert ask(folders, "/index.html", origin="http://127.0.0.1")[0] == 200
