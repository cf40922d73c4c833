"""The review's page over HTTP on 127.0.0.1: who may ask, what is answered, and how an error is told."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import BackgroundTasks, FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from densitywatch.batches.review.judging import give_verdicts, renew_report, summary_of
from densitywatch.batches.review.page import ReviewImages, render
from densitywatch.batches.review.random_draw import draw
from densitywatch.batches.verdicts import VERDICTS, Key, Verdict, read_verdicts
from densitywatch.errors import DataError, DensitywatchError, DiskFull
from densitywatch.progress import say
from densitywatch.text import visible

HOSTS = ["127.0.0.1", "localhost"]
LONGEST_BODY = 1024


def create_app(folder: Path, root: Path = Path(), seed: int = 0) -> FastAPI:
    """The review page of the results in `folder`, as a FastAPI application.

    `root`: the project's folder, from which the batch's source is named. `seed`: of the random draw.

    Only requests to 127.0.0.1 or localhost are answered, and verdicts are taken only from the page itself (a token in a
    header). So another site in the same browser can neither read the images nor judge them. A verdict is answered once
    it is on the disk. An error is answered as one sentence under `detail`, which the page shows.

    Raises DataError when the results are missing or damaged.
    """
    images, token = ReviewImages(folder), secrets.token_urlsafe(16)
    summary = summary_of(folder)
    source, name = str(summary["identity"]["source"]), str(summary["batch"])
    app = FastAPI(title="densitywatch review", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    app.add_exception_handler(Exception, _in_a_sentence)
    app.add_exception_handler(DensitywatchError, _in_a_sentence)
    app.add_exception_handler(OSError, _in_a_sentence)
    app.add_exception_handler(RequestValidationError, _in_a_sentence)
    report_trouble: list[str] = []

    def checked(index: int) -> Key:
        if not 0 <= index < len(images.keys):
            raise HTTPException(404, f"there are {len(images.keys)} images to judge, from 0")
        return images.keys[index]

    def state(verdicts: dict[Key, Verdict]) -> dict[str, Any]:
        return images.state(verdicts, trouble=" ".join(report_trouble))

    def report_anew() -> None:
        """Renew the report. Where that fails the verdict is saved all the same, and the next answer says so."""
        try:
            renew_report(folder)
            report_trouble.clear()
        except (DensitywatchError, OSError) as error:
            report_trouble[:] = [f"The verdicts are saved, the report is not: {visible(error)}."]
            say(f"review: the report was not written: {error}")

    @app.get("/", response_class=HTMLResponse)
    def page(response: Response) -> str:
        html, response.headers["Content-Security-Policy"] = render(name, token, state(read_verdicts(folder)))
        return html

    @app.get("/items/{index}")
    def item(index: int) -> dict[str, Any]:
        checked(index)
        return images.item(index)

    def from_the_page(request: Request) -> None:
        """Before the body: none is read for someone who is not the page."""
        sent = request.headers.get("X-Review-Token", "")
        if not secrets.compare_digest(sent.encode(), token.encode()):
            raise HTTPException(403, "open the review page anew")

    @app.post("/draw")
    async def more(request: Request) -> dict[str, Any]:
        """Draw images at random, up to the number in the page's `{"images": ...}`; the page then loads itself anew."""
        nonlocal images
        from_the_page(request)
        count = _sent(await _body(request), "images")
        if not isinstance(count, int) or isinstance(count, bool):
            raise HTTPException(422, "how many images to draw is a whole number")
        await run_in_threadpool(draw, folder, count, root, seed)
        images = await run_in_threadpool(ReviewImages, folder)
        return state(read_verdicts(folder))

    @app.post("/verdicts/{index}")
    async def verdict(index: int, request: Request, tasks: BackgroundTasks) -> dict[str, Any]:
        from_the_page(request)
        key = checked(index)
        judged = _judged(await _body(request))
        verdicts = await run_in_threadpool(give_verdicts, folder, {key: judged}, source=source)
        tasks.add_task(report_anew)
        return state(verdicts)

    return app


async def _body(request: Request) -> bytes:
    """The request's body, of a declared length or in chunks, at most LONGEST_BODY bytes."""
    too_long = HTTPException(413, f"a verdict has at most {LONGEST_BODY} bytes", headers={"Connection": "close"})
    declared = request.headers.get("Content-Length", "0")
    if not declared.isdecimal() or int(declared[:20]) > LONGEST_BODY:
        raise too_long
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LONGEST_BODY:
            raise too_long
    return body


def _judged(body: bytes) -> Verdict | None:
    """The verdict in the page's `{"verdict": ...}`; null takes a verdict back."""
    sent = _sent(body, "verdict")
    for verdict in (None, *VERDICTS):
        if sent == verdict:
            return verdict
    raise HTTPException(422, f"a verdict is {' or '.join(map(repr, VERDICTS))}, or null to take it back")


def _sent(body: bytes, name: str) -> Any:
    """The value of `name` in a JSON body."""
    try:
        sent = json.loads(body.decode())
    except (ValueError, RecursionError):
        raise HTTPException(400, f"a {name} is sent as JSON") from None
    if not isinstance(sent, dict) or name not in sent:
        raise HTTPException(422, f'a {name} is sent as {{"{name}": ...}}')
    return sent[name]


async def _in_a_sentence(request: Request, error: Exception) -> JSONResponse:
    """Any error as one sentence that the page shows; an error that nobody foresaw is named by its type."""
    if isinstance(error, DiskFull):
        return _answer(507, f"the disk is full, nothing was saved; free some space ({error})")
    if isinstance(error, DensitywatchError):
        return _answer(409, str(error))
    if isinstance(error, RequestValidationError):
        return _answer(422, "images are asked for by their number")
    if isinstance(error, OSError):
        return _answer(500, f"nothing was saved: {error.filename or ''} {error.strerror or error}".replace("  ", " "))
    return _answer(500, f"nothing was saved ({type(error).__name__})")


def _answer(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"detail": visible(sentence)}, status)


def serve(folder: Path, port: int = 8765, *, root: Path = Path(), seed: int = 0) -> None:
    """Serve the review page on 127.0.0.1 until interrupted; the report is renewed at the end."""
    app = create_app(folder, root, seed)
    say(f"review: http://127.0.0.1:{port}/ (keys: o outlier, f fine, u undo, arrows; stop with Ctrl-C)")
    try:
        uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
    except KeyboardInterrupt:
        pass
    except SystemExit:
        raise DataError(f"port {port} on 127.0.0.1 cannot be had; choose another one with --port") from None
    renew_report(folder)
