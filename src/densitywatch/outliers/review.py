"""`densitywatch review BATCH`: a person says of each flagged image whether it is an outlier.

A small page on 127.0.0.1, driven by the keyboard, or a CSV file. Verdicts are kept with the batch after every key, feed
the report's precision so far, and choose which originals go into the next dataset version.
"""

from __future__ import annotations

import csv
import hashlib
import re
import secrets
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from fastapi import BackgroundTasks, FastAPI, Header, HTTPException, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel
from starlette.middleware.trustedhost import TrustedHostMiddleware

from densitywatch.data.inputs import entries, is_local, local_path
from densitywatch.errors import DataError
from densitywatch.files import full_disk_as_error, write_whole
from densitywatch.outliers import publishing
from densitywatch.outliers.gallery import GALLERY
from densitywatch.outliers.report import data_uri, environment, flagged, visible, write_report
from densitywatch.outliers.verdicts import VERDICTS, Key, Verdict, precision, read_verdicts, write_verdicts
from densitywatch.params import Params
from densitywatch.progress import say
from densitywatch.text import as_text

HOSTS = ["127.0.0.1", "localhost"]
HEADER = ("number", "verdict", "path", "p_value", "why", "sha256")


def batch_folder(batch: str, params: Params, root: Path) -> Path:
    """The results of `batch`, a name under inbox.results or a path. Raises DataError when there are none."""
    results = root / params.inbox.results
    for folder in (results / batch, root / batch):
        if publishing.read_summary(folder) is not None:
            return folder
    known = sorted(path.parent.name for path in results.glob("[!.]*/summary.json"))
    there = f"; there is: {', '.join(known[:20])}" if known else "; score one first"
    raise DataError(f"no results of a batch '{as_text(batch)}' in {results}{there}")


def give_verdicts(folder: Path, given: dict[Key, Verdict | None]) -> dict[Key, Verdict]:
    """Add verdicts to those of the batch (None takes one back); returns all of them."""
    with publishing.only_job(folder), full_disk_as_error(folder):
        publishing.recover(folder)
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
    with publishing.only_job(folder), full_disk_as_error(folder):
        write_report(folder)


class Judged(BaseModel):
    """What the page sends: a verdict, or null to take it back."""

    verdict: Verdict | None


class Flagged:
    """The flagged images of a batch, by their place in the gallery; pictures are read when asked for."""

    def __init__(self, folder: Path) -> None:
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
        row = self._file.read_row_group(group).slice(place - self._starts[group], 1).to_pylist()[0]
        return {
            "path": visible(row["path"]),
            "why": row["why"],
            "changed": row["reason"],
            "p_value": row["p_value"],
            "picture": data_uri(row["picture"]),
            "map": data_uri(row["map"]),
            "neighbours": [data_uri(image) for image in row["neighbours"] or []],
        }


def create_app(folder: Path) -> FastAPI:
    """The review page of the results in `folder`, as a FastAPI application.

    Only requests to 127.0.0.1 by name are answered, and verdicts only from the page itself (a token in a header), so
    that another site open in the same browser can neither read the images nor judge them.
    """
    images, token = Flagged(folder), secrets.token_urlsafe(16)
    name = str((publishing.read_summary(folder) or {}).get("batch", folder.name))
    app = FastAPI(title="densitywatch review", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)

    def checked(index: int) -> Key:
        if not 0 <= index < len(images.keys):
            raise HTTPException(404, f"there are {len(images.keys)} flagged images, from 0")
        return images.keys[index]

    def state(verdicts: dict[Key, Verdict]) -> dict[str, Any]:
        given = [verdicts.get(key) for key in images.keys]
        return {"verdicts": given, "precision": precision(given)}

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
    def verdict(
        index: int,
        judged: Judged,
        tasks: BackgroundTasks,
        sent: str = Header("", alias="X-Review-Token"),
    ) -> dict[str, Any]:
        if not secrets.compare_digest(sent.encode(), token.encode()):
            raise HTTPException(403, "open the review page anew")
        key = checked(index)
        verdicts = give_verdicts(folder, {key: judged.verdict})
        tasks.add_task(renew_report, folder)
        return state(verdicts)

    return app


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


def write_csv(folder: Path, target: Path) -> int:
    """The flagged images as a table with a column `verdict` to fill in; returns how many there are.

    A cell that a spreadsheet would take for a formula begins with an apostrophe.
    """
    verdicts = read_verdicts(folder)
    rows = pq.read_table(folder / GALLERY, columns=["path", "sha256", "p_value", "why", "outlier"]).to_pylist()
    with full_disk_as_error(target), target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        marked = [row for row in rows if row["outlier"]]
        for number, row in enumerate(marked):
            verdict = verdicts.get((row["path"], row["sha256"]), "")
            cells = (number, verdict, visible(row["path"]), row["p_value"], row["why"] or "", row["sha256"])
            writer.writerow([f"'{cell}" if re.match(r"[=+\-@\t\r]", str(cell)) else cell for cell in cells])
    return len(marked)


def read_csv(folder: Path, source: Path) -> int:
    """Take the verdicts of a table written by `write_csv`; returns how many were given. Empty cells change nothing.

    Raises DataError, naming the line, when a row or a verdict is none of this batch; then nothing is taken.
    """
    keys, given = list(flagged(folder)), dict[Key, Verdict | None]()
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            for line, row in enumerate(csv.DictReader(file), start=2):
                verdict = (row.get("verdict") or "").strip().lower()
                if not verdict:
                    continue
                number = (row.get("number") or "").strip()
                key = keys[int(number)] if number.isdecimal() and int(number) < len(keys) else None
                if key is None or key[1] != (row.get("sha256") or "").strip():
                    raise DataError(f"{source}, line {line}: no flagged image of this batch; write the table anew")
                given[key] = _verdict(verdict, f"{source}, line {line}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{source}: not a readable CSV file ({' '.join(str(error).split())})") from None
    give_verdicts(folder, given)
    renew_report(folder)
    return len(given)


def _verdict(text: str, where: str) -> Verdict:
    for verdict in VERDICTS:
        if text == verdict:
            return verdict
    raise DataError(f"{where}: '{text[:40]}' is no verdict; it is one of {', '.join(VERDICTS)}, or empty")


def collect(folder: Path, target: Path, root: Path) -> dict[str, int]:
    """Copy the originals of the reviewed images to target/fine and target/outlier, for the next dataset version.

    They are found in the batch's source by their content and named after it, so that doing it twice adds nothing; a
    verdict that was changed or taken back since takes its copy away. Returns how many of each verdict are there. Raises
    DataError when the source is gone or has lost some of them.
    """
    wanted = {digest: verdict for (_, digest), verdict in read_verdicts(folder).items()}
    summary = publishing.read_summary(folder) or {}
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
