"""The doors for requests: the served model, the review page, and the server of the reports."""

from __future__ import annotations

import asyncio
import io
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from hypothesis import strategies as st

from densitywatch.batches.review.server import create_app
from densitywatch.errors import DensitywatchError
from densitywatch.registry.service import Service
from pipelines.reports import Guarded, app
from pipelines.server import OwnPagesOnly
from tests.faults.hostile.attempt import Door, Enter
from tests.faults.hostile.doors_of_files import samples
from tests.faults.hostile.doors_of_texts import scored
from tests.faults.hostile.mutations import changed, files, json_text, names, text
from tests.registry.registry_project import base64_png, images, write_model

Request = tuple[str, str, list[tuple[bytes, bytes]], bytes]
"""Method, path with its query, headers, body."""


class Refused(DensitywatchError):
    """The server refused a request with a sentence."""


async def _answer(application: Any, request: Request) -> tuple[int, dict[str, str], bytes]:
    method, address, headers, body = request
    path, _, query = address.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogatepass"),
        "query_string": query.encode("utf-8", "surrogatepass"),
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    given = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return given.pop(0) if given else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await application(scope, receive, send)
    start = next(message for message in sent if message["type"] == "http.response.start")
    content = b"".join(message.get("body", b"") for message in sent if message["type"] == "http.response.body")
    return start["status"], {name.decode(): value.decode() for name, value in start["headers"]}, content


def _served(folder: Path) -> Enter:
    """MLflow's own server with a small model behind it, as `mlflow models serve` makes it."""
    packed = write_model(folder, "pixelcnn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow warns of its own types
        from mlflow.models import ModelSignature
        from mlflow.pyfunc import load_model, save_model, scoring_server
        from mlflow.types import ColSpec, Schema

        from densitywatch.registry import serving

        save_model(
            folder / "version",
            python_model=str(Path(serving.__file__)),
            artifacts={"model": str(packed)},
            signature=ModelSignature(outputs=Schema([ColSpec("double", "bits_per_dim")])),
            model_config={"resize": "crop"},
            pip_requirements=[],
        )
        model: Any = load_model(str(folder / "version"))
    served = model.unwrap_python_model()
    assert isinstance(served.service, Service)
    scoring_server.invocations = served.invocations  # as load_context does it in the server's own process
    application = scoring_server.init(model)

    def enter(case: tuple[str, bytes]) -> None:
        kind, body = case
        headers = [(b"content-type", kind.encode("latin-1", "replace")), (b"host", b"127.0.0.1")]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            status, _, content = asyncio.run(_answer(application, ("POST", "/invocations", headers, body)))
        if status == 200:
            answers = json.loads(content)["predictions"]
            assert isinstance(answers, list)
            return
        assert status in (400, 415), (status, content[:500])
        said = json.loads(content) if content.startswith(b"{") else {"message": content.decode()}
        assert set(said) <= {"error_code", "message"}, said
        raise Refused(said["message"])

    return enter


def _of_served() -> st.SearchStrategy[tuple[str, bytes]]:
    pictures = images(2, 1)
    encoded = [base64_png(picture[0]) for picture in pictures]
    bodies: list[Any] = [
        {"inputs": pictures.tolist()},
        {"inputs": encoded},
        {"instances": encoded},
        {"inputs": {"samples": 2, "seed": 1}},
        {"dataframe_split": {"columns": ["image"], "data": [[file] for file in encoded]}},
        {"dataframe_records": [{"image": file} for file in encoded]},
    ]
    table = pd.DataFrame({"image": encoded})
    file = io.BytesIO()
    table.to_parquet(file)
    lies = json_text(bodies).map(lambda said: said.encode("utf-8", "surrogatepass"))
    real = samples()
    foreign = st.sampled_from([data for kind in real.values() for data in kind])
    import base64

    inside = st.one_of(foreign, changed([data for kind in real.values() for data in kind])).map(
        lambda data: json.dumps({"inputs": [base64.b64encode(data).decode()]}).encode()
    )
    json_kind = st.sampled_from(("application/json", "application/json; charset=utf-8", "APPLICATION/JSON"))
    csv = text([table.to_csv(index=False)]).map(lambda said: said.encode("utf-8", "surrogatepass"))
    kinds = st.one_of(st.sampled_from(("", "text/html", "application/json;;=", "text/csv; charset=utf-16")), names)
    return st.one_of(
        st.tuples(json_kind, lies),
        st.tuples(json_kind, lies),
        st.tuples(json_kind, inside),
        st.tuples(st.just("text/csv"), csv),
        st.tuples(st.just("application/vnd.apache.parquet"), files([file.getvalue()])),
        st.tuples(kinds, lies),
    )


def _review(folder: Path) -> Enter:
    results = scored(folder)
    application = create_app(results, folder, seed=1)
    host = [(b"host", b"127.0.0.1:80")]
    page = asyncio.run(_answer(application, ("GET", "/", host, b"")))[2].decode()
    token = re.findall(r'const token = "([^"]+)"', page)[0].encode()

    def enter(case: Request) -> None:
        method, path, headers, body = case
        headers = [(name, token if value == b"TOKEN" else value) for name, value in headers]
        status, _, content = asyncio.run(_answer(application, (method, path, headers, body)))
        known = dict(headers)
        if method == "POST" and status == 200:
            assert known.get(b"x-review-token") == token, "a change without the token"
        if status == 200:
            assert known.get(b"host", b"").partition(b":")[0] in (b"127.0.0.1", b"localhost"), "another host"
            return
        assert status in (303, 307, 400, 403, 404, 405, 409, 413, 422), (status, content[:300])
        said = content.decode()
        raise Refused(str(json.loads(said).get("detail")) if said.startswith("{") else said or f"status {status}")

    return enter


_paths = st.one_of(
    st.sampled_from(
        ("/", "/items/0", "/items/2", "/items/3", "/items/-1", "/verdicts/0", "/verdicts/1", "/draw", "/verdicts/99999")
    ),
    st.sampled_from(("/items/1e3", "/items/0x1", "/verdicts/0/", "//", "/../../etc/passwd", "/items/" + "9" * 5000)),
    names.map(lambda name: f"/items/{name}"),
    names.map(lambda name: f"/{name}"),
)
_bodies = st.one_of(
    st.sampled_from((b'{"verdict": "fine"}', b'{"verdict": "outlier"}', b'{"verdict": null}', b'{"images": 3}')),
    json_text([{"verdict": "outlier"}, {"images": 3}, {"verdict": None}]).map(
        lambda said: said.encode("utf-8", "surrogatepass")
    ),
    st.sampled_from((b'{"verdict": "fine"}', b'{"images": 2}', b'{"verdict": null, "images": true}')),
    st.binary(max_size=2000),
)


_none = st.just(b"")


def _mostly(right: st.SearchStrategy[Any], wrong: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Nine times in ten `right`: `one_of` counts a strategy that is named twice once."""
    return st.integers(0, 9).flatmap(lambda number: wrong if number == 9 else right)


def _headers(token: bytes) -> st.SearchStrategy[list[tuple[bytes, bytes]]]:
    """Mostly those of the page itself: what comes after them is looked at only then."""
    value = st.binary(max_size=30).map(lambda said: re.sub(rb"[\r\n\0]", b"", said))
    right = (b"127.0.0.1:80", b"127.0.0.1:80", b"localhost", b"127.0.0.1:80", b"localhost:80", b"localhost")
    hosts = _mostly(st.sampled_from(right), st.one_of(st.sampled_from((b"example.com", b"")), value))
    tokens = _mostly(st.just(token), st.one_of(st.sampled_from((b"", b"wrong")), value))
    length = _mostly(st.none(), st.sampled_from((b"12", b"-1", b"9" * 5000, b"\xb2", b"99999", b"x")))
    origins = _mostly(st.none(), st.sampled_from((b"http://127.0.0.1:80", b"http://[", b"null", b"x://\xff")))
    return st.builds(
        lambda host, sent, size, origin: [
            (b"host", host),
            (b"x-review-token", sent),
            *([(b"origin", origin)] if origin is not None else []),
            *([(b"content-length", size)] if size is not None else []),
        ],
        hosts,
        tokens,
        length,
        origins,
    )


def _reports(folder: Path) -> Enter:
    """The server of the results: nothing but what this project writes, and nothing of other folders."""
    results = scored(folder / "data")
    (folder / "data" / "secret.txt").write_text("SECRET-OF-THE-MACHINE")
    (results / ".hidden.json").write_text("SECRET-OF-THE-MACHINE")
    (results / "link.html").symlink_to(folder / "data" / "secret.txt")
    (folder / "reports").mkdir()
    (folder / "reports" / "index.html").write_text("<p>report")
    served = OwnPagesOnly(Guarded(app(results.parent, folder / "reports")), folder, None)

    def enter(case: Request) -> None:
        status, headers, content = asyncio.run(_answer(served, case))
        assert b"SECRET-OF-THE-MACHINE" not in content
        assert status < 500, (status, content[:200])
        if status == 200 and content not in (b"OK\n",):
            assert headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in headers["content-security-policy"]
            return
        raise Refused(content.decode() or f"status {status}")

    return enter


_report_paths = st.one_of(
    st.sampled_from(("/results/report.html", "/training/", "/results/summary.json", "/results/gallery.parquet")),
    st.sampled_from(
        (
            "/",
            "/health",
            "/results/report.html",
            "/results/report.html",
            "/results/run.json",
            "/results/scores.parquet",
            "/results/summary.json",
            "/results/.hidden.json",
            "/results/link.html",
            "/secret.txt",
            "/../secret.txt",
            "/results/../../secret.txt",
            "/%2e%2e/secret.txt",
            "//etc/passwd",
            "/training/../data/secret.txt",
            "/training/index.html",
            "/index.html?x=" + "y" * 300,
        )
    ),
    names.map(lambda name: f"/results/{name}"),
    names.map(lambda name: f"/training/{name}"),
    names.map(lambda name: f"/{name}"),
)
_methods = st.sampled_from(("GET",) * 8 + ("HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", ""))


def doors() -> list[Door]:
    asked: Callable[..., st.SearchStrategy[Request]] = st.tuples
    sent = _headers(b"TOKEN")
    looked_at = asked(
        st.just("GET"), st.sampled_from(("/", "/items/0", "/items/2", "/items/4", "/items/99")), sent, _none
    )
    judged = asked(
        st.just("POST"), st.sampled_from(("/verdicts/0", "/verdicts/1", "/verdicts/99", "/draw")), sent, _bodies
    )
    anything = asked(st.sampled_from(("GET", "POST", "POST", "HEAD", "PUT")), _paths, sent, _bodies)
    review = st.one_of(looked_at, judged, judged, anything)
    reports = asked(_methods, _report_paths, _headers(b"x"), st.binary(max_size=20))
    return [
        Door("request to a served model", st.deferred(_of_served), _served, share=500, quick=15),
        Door("request to the review page", review, _review, share=400, quick=25),
        Door("request to the reports", reports, _reports, share=400, quick=40),
    ]
