"""The server of the results: reports and the page over time, to read and nothing else.

`python -m pipelines.reports PORT RESULTS REPORTS` serves the folder of all results at / and that of the trained models'
report at /training/. A batch may be called `training` too: its files have other names than those of that report.
`make up` starts it. Only files that this project writes are served, by their names; folders are not listed, hidden
files and what lies behind a link that leads outside are not there. A page may run its own script and load nothing
(docs/decisions/0039-pages-made-of-a-table-of-batches.md).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from densitywatch import environment
from densitywatch.batches.results_folder import FILES, OVER_TIME
from densitywatch.errors import DataError
from densitywatch.files import read_json
from pipelines import listening, service_processes
from pipelines.server import OwnPagesOnly

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

NAME = "reports"
"""Its entry in var/services.json; NAMED in var/addresses.json."""
NAMED = "Reports"
TRAINING = "training"
TYPES = frozenset([".html", ".json", ".png", ".svg", ".webp", ".jpg", ".csv"])
"""Endings that are served of the trained models' report."""
PAGE_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'"
)
FILE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'"


def command(port: int | str, results: Path, reports: Path) -> list[str]:
    """The command line of the server."""
    return [sys.executable, "-m", "pipelines.reports", str(port), str(results), str(reports)]


def address(root: Path) -> str | None:
    """Where this checkout's server is, if it runs; another program that has its port since is not taken for it."""
    entry = next((entry for entry in service_processes.noted(root) if entry["name"] == NAME), None)
    if entry is None or service_processes.find(entry) is None:
        return None
    try:
        known = read_json(root / "var" / "addresses.json")
    except (FileNotFoundError, DataError):
        return None
    found = known.get(NAMED) if isinstance(known, dict) else None
    return found if isinstance(found, str) else None


def page_of(folder: Path, root: Path) -> str:
    """The address of a batch's report: of the server where it runs and has it, otherwise of the file."""
    at, page = address(root), folder.resolve() / "report.html"
    if at is None or not page.is_relative_to(_served(root)):
        return page.as_uri()
    return f"{at}/{quote(page.relative_to(_served(root)).as_posix())}"


def _served(root: Path) -> Path:
    """The folder that the server was started with."""
    from densitywatch.params import load_params

    return (root / load_params(root / "params.yaml").inbox.results).resolve()


def app(results: Path, reports: Path) -> Starlette:
    """The server as an ASGI application."""
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse, RedirectResponse
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

    class Known(StaticFiles):
        """The files of a folder whose path `is_known` says yes to."""

        def __init__(self, folder: Path, *, of_training: bool) -> None:
            super().__init__(directory=folder, html=True, check_dir=False)
            self.of_training = of_training

        async def check_config(self) -> None:
            """No complaint where the folder is not there yet: nothing has been scored."""

        async def get_response(self, path: str, scope: dict[str, object]) -> Response:  # type: ignore[override]
            if not is_known(path, of_training=self.of_training):
                return _nothing("nothing here")
            return await super().get_response(path, scope)

    def _nothing(text: str) -> Response:
        return PlainTextResponse(text + "\n", status_code=404)

    async def health(_: Request) -> Response:
        return PlainTextResponse("OK\n")

    async def training(_: Request) -> Response:
        return RedirectResponse(f"/{TRAINING}/")

    batches = Known(results, of_training=False)

    async def batch_called_training(request: Request) -> Response:
        return await batches.get_response(request.scope["path"].lstrip("/"), request.scope)  # type: ignore[arg-type]

    async def missing(request: Request, _: Exception) -> Response:
        if request.url.path == "/":
            return _nothing("no batch has been scored yet")
        return _nothing("nothing here")

    return Starlette(
        routes=[
            Route("/health", health),
            Route(f"/{TRAINING}", training),
            *[Route(f"/{TRAINING}/{file}", batch_called_training) for file in sorted(FILES)],
            Mount(f"/{TRAINING}", Known(reports, of_training=True)),
            Mount("/", batches),
        ],
        exception_handlers={404: missing},
    )


def is_known(path: str, *, of_training: bool) -> bool:
    """Whether a file of this path below a served folder is one that this project writes for people to read.

    Of the results: the page over time, and the files of a batch. Of the trained models' report: what is no hidden file
    and has one of TYPES.
    """
    parts = [part for part in Path(path).parts if part != "."]
    if any(part.startswith((".", "/")) for part in parts):
        return False
    if not parts:
        return True
    if of_training:
        return "." not in parts[-1] or Path(parts[-1]).suffix in TYPES
    return parts == [OVER_TIME] or (len(parts) == 2 and parts[1] in FILES)


class Guarded:
    """An ASGI application that adds the headers of a page that loads nothing to all that `app` answers."""

    def __init__(self, app: object) -> None:
        self.app = app

    async def __call__(self, scope: object, receive: object, send: object) -> None:
        from starlette.datastructures import MutableHeaders

        async def guarded(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                page = headers.get("content-type", "").startswith("text/html")
                headers["Content-Security-Policy"] = PAGE_POLICY if page else FILE_POLICY
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
                headers["Cache-Control"] = "no-cache"
            await send(message)  # type: ignore[operator]

        await self.app(scope, receive, guarded)  # type: ignore[operator]


def main(arguments: list[str]) -> int:
    import uvicorn

    port, results, reports = arguments
    served = OwnPagesOnly(Guarded(app(Path(results), Path(reports))), Path.cwd(), environment.login())
    host = listening.host()
    uvicorn.run(served, host=host, port=int(port), log_level="info", access_log=False, timeout_graceful_shutdown=2)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
