"""`densitywatch review BATCH`: a person says of each flagged image whether it is an outlier.

A small page on 127.0.0.1, driven by the keyboard, or a CSV file. Verdicts are kept with the batch after every key, feed
the report's precision so far, and choose which originals go into the next dataset version.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from fastapi import BackgroundTasks, FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from densitywatch.batches import results_folder as publishing
from densitywatch.batches.batch_report import damage_as_error, data_uri, environment, flagged, write_batch_report
from densitywatch.batches.gallery import GALLERY
from densitywatch.batches.verdicts import VERDICTS, Key, Verdict, precision, read_verdicts, write_verdicts
from densitywatch.data.inputs.source import entries, is_local, local_path
from densitywatch.errors import DataError, DensitywatchError, DiskFull
from densitywatch.files import full_disk_as_error, write_whole
from densitywatch.params import Params
from densitywatch.progress import say
from densitywatch.text import as_text, visible

HOSTS = ["127.0.0.1", "localhost"]
LONGEST_BODY = 1024
GONE = "the results of this batch are not there any more, so nothing was saved; start the review anew"


def batch_folder(batch: str, params: Params, root: Path) -> Path:
    """The results of `batch`, a name under inbox.results or a path. Raises DataError when there are none."""
    results = root / params.inbox.results
    for folder in (results / batch, root / batch):
        if publishing.read_summary(folder) is not None:
            return publishing.behind_link(folder)
        if (folder / publishing.SUMMARY).exists():
            raise DataError(f"{folder / publishing.SUMMARY}: damaged; score the batch again, its verdicts stay")
    known = sorted(path.parent.name for path in results.glob("[!.]*/summary.json"))
    there = f"; there is: {', '.join(known[:20])}" if known else "; score one first"
    raise DataError(f"no results of a batch '{as_text(batch)}' in {results}{there}")


def give_verdicts(folder: Path, given: dict[Key, Verdict | None], *, source: str | None = None) -> dict[Key, Verdict]:
    """Add verdicts to those of the batch (None takes one back); returns all of them once they are on the disk.

    `source`: whose results must be there. Raises DiskFull, and DataError when the results are not there any more.
    """
    try:
        return _give(folder, given, source)
    except FileNotFoundError:
        raise DataError(f"{folder}: {GONE}") from None


def _give(folder: Path, given: dict[Key, Verdict | None], source: str | None) -> dict[Key, Verdict]:
    with publishing.only_job(folder), full_disk_as_error(folder):
        publishing.recover(folder)
        summary = publishing.read_summary(folder)
        if summary is None or (source is not None and summary["identity"]["source"] != source):
            raise DataError(f"{folder}: {GONE}")
        verdicts = read_verdicts(folder)
        for key, verdict in given.items():
            if verdict is None:
                verdicts.pop(key, None)
            else:
                verdicts[key] = verdict
        write_verdicts(folder, verdicts)
    return verdicts


def renew_report(folder: Path) -> None:
    """The report with the verdicts so far."""
    try:
        with publishing.only_job(folder), full_disk_as_error(folder):
            write_batch_report(folder)
    except FileNotFoundError:
        raise DataError(f"{folder}: {GONE}") from None


class Flagged:
    """The flagged images of a batch, by their place in the gallery; pictures are read when asked for.

    Raises DataError when the gallery is missing or damaged, `item` as well.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with damage_as_error(folder):
            self.keys = list(flagged(folder))
            self._file = pq.ParquetFile(folder / GALLERY)
            self._starts = [0]
            for group in range(self._file.num_row_groups):
                self._starts.append(self._starts[-1] + self._file.metadata.row_group(group).num_rows)
            marks = pq.read_table(folder / GALLERY, columns=["outlier"]).column("outlier").to_pylist()
            self._places = [place for place, mark in enumerate(marks) if mark]

    def item(self, index: int) -> dict[str, Any]:
        """What the page shows of one image."""
        place = self._places[index]
        group = next(i for i, start in enumerate(self._starts[1:]) if place < start)
        with damage_as_error(self._folder):
            row = self._file.read_row_group(group).slice(place - self._starts[group], 1).to_pylist()[0]
            return {
                "path": visible(row["path"]),
                "why": row["why"] and visible(row["why"]),
                "changed": row["reason"] and visible(row["reason"]),
                "p_value": row["p_value"],
                "picture": data_uri(row["picture"]),
                "map": data_uri(row["map"]),
                "neighbours": [data_uri(image) for image in row["neighbours"] or []],
            }


def create_app(folder: Path) -> FastAPI:
    """The review page of the results in `folder`, as a FastAPI application.

    Only requests to 127.0.0.1 by name are answered, and verdicts only from the page itself (a token in a header), so
    that another site open in the same browser can neither read the images nor judge them. A verdict is answered once it
    is on the disk; whatever went wrong is answered as one sentence under `detail`, which the page shows.

    Raises DataError when the results are missing or damaged.
    """
    images, token = Flagged(folder), secrets.token_urlsafe(16)
    summary = publishing.read_summary(folder)
    if summary is None:
        raise DataError(f"{folder}: {GONE}")
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
            raise HTTPException(404, f"there are {len(images.keys)} flagged images, from 0")
        return images.keys[index]

    def state(verdicts: dict[Key, Verdict]) -> dict[str, Any]:
        given = [verdicts.get(key) for key in images.keys]
        return {"verdicts": given, "precision": precision(given), "trouble": " ".join(report_trouble)}

    def report_anew() -> None:
        """The verdict is kept whatever becomes of the report; the page says so with its next answer."""
        try:
            renew_report(folder)
            report_trouble.clear()
        except (DensitywatchError, OSError) as error:
            report_trouble[:] = [f"The verdicts are saved, the report is not: {visible(error)}."]
            say(f"review: the report was not written: {error}")

    @app.get("/", response_class=HTMLResponse)
    def page(response: Response) -> str:
        nonce = secrets.token_urlsafe(16)
        response.headers["Content-Security-Policy"] = (
            f"default-src 'none'; connect-src 'self'; img-src data:; style-src 'nonce-{nonce}'; "
            f"script-src 'nonce-{nonce}'; frame-ancestors 'none'; base-uri 'none'"
        )
        return str(
            environment()
            .get_template("review.html.j2")
            .render(name=name, token=token, nonce=nonce, state=state(read_verdicts(folder)))
        )

    @app.get("/items/{index}")
    def item(index: int) -> dict[str, Any]:
        checked(index)
        return images.item(index)

    @app.post("/verdicts/{index}")
    async def verdict(index: int, request: Request, tasks: BackgroundTasks) -> dict[str, Any]:
        # the order matters: nothing of a body is read for someone who is not the page
        sent = request.headers.get("X-Review-Token", "")
        if not secrets.compare_digest(sent.encode(), token.encode()):
            raise HTTPException(403, "open the review page anew")
        key = checked(index)
        judged = _judged(await _body(request))
        verdicts = await run_in_threadpool(give_verdicts, folder, {key: judged}, source=source)
        tasks.add_task(report_anew)
        return state(verdicts)

    return app


async def _body(request: Request) -> bytes:
    """The request's body, of a declared length or in chunks, as far as a verdict may be long."""
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
    """What the page sends, `{"verdict": ...}`: a verdict, or null to take it back."""
    try:
        sent = json.loads(body.decode())
    except (ValueError, RecursionError):
        raise HTTPException(400, "a verdict is sent as JSON") from None
    if not isinstance(sent, dict) or "verdict" not in sent:
        raise HTTPException(422, 'a verdict is sent as {"verdict": ...}')
    for verdict in (None, *VERDICTS):
        if sent["verdict"] == verdict:
            return verdict
    raise HTTPException(422, f"a verdict is {' or '.join(map(repr, VERDICTS))}, or null to take it back")


async def _in_a_sentence(request: Request, error: Exception) -> JSONResponse:
    """Whatever goes wrong, as the page shows it; what nobody foresaw has its kind alone."""
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


def serve(folder: Path, port: int = 8765) -> None:
    """Serve the review page on 127.0.0.1 until interrupted."""
    import uvicorn

    app = create_app(folder)
    say(f"review: http://127.0.0.1:{port}/ (keys: o outlier, f fine, u undo, arrows; stop with Ctrl-C)")
    try:
        uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
    except KeyboardInterrupt:
        pass
    except SystemExit:
        raise DataError(f"port {port} on 127.0.0.1 cannot be had; choose another one with --port") from None
    renew_report(folder)


def collect(folder: Path, target: Path, root: Path) -> dict[str, int]:
    """Copy the originals of the reviewed images to target/fine and target/outlier, for the next dataset version.

    They are found in the batch's source by their content and named after it, so that doing it twice adds nothing; a
    verdict that was changed or taken back since takes its copy away. Returns how many of each verdict are there. Raises
    DataError when the source is gone or has lost some of them.
    """
    wanted = {digest: verdict for (_, digest), verdict in read_verdicts(folder).items()}
    summary = publishing.read_summary(folder)
    if summary is None:
        raise DataError(f"{folder}: {GONE}")
    source = str(summary["identity"]["source"])
    stale = {
        digest: [
            copy for other in VERDICTS if other != wanted.get(digest) for copy in (target / other).glob(f"{digest}*")
        ]
        for _, digest in flagged(folder)
    }
    missing = wanted.keys() | {digest for digest, copies in stale.items() if copies}
    where = str(root / local_path(source)) if is_local(source) else source
    follow = bool(summary["identity"].get("follow_links"))
    for entry in entries(where, follow_links=follow) if missing else ():
        try:
            data = entry.read()
        except DataError:
            continue  # quarantined: never flagged, so never reviewed
        digest = hashlib.sha256(data).hexdigest()
        if digest in missing:
            if digest in wanted:
                suffix = re.search(r"\.[A-Za-z0-9]{1,5}$", entry.path)
                write_whole(target / wanted[digest] / f"{digest}{suffix.group(0).lower() if suffix else ''}", data)
            for copy in stale[digest]:  # only now: the original is there, so nothing is lost
                copy.unlink()
            missing.discard(digest)
            if not missing:
                break
    if missing := missing & wanted.keys():
        raise DataError(f"{source}: {len(missing)} of {len(wanted)} reviewed images are not there any more")
    counts = {verdict: sum(value == verdict for value in wanted.values()) for verdict in VERDICTS}
    return {str(verdict): count for verdict, count in counts.items()}
