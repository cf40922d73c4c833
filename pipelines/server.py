"""Prefect's server as this project runs it, for its own page and its own programs: `python -m pipelines.server PORT`.

Prefect has a login (prefect_home.login). OwnPagesOnly adds two checks that Prefect lacks: a request that names another
host than this machine, or comes from another site's page, is refused (docs/decisions/0014-a-login-for-prefect.md). It
asks for a login as well where an application has none of its own (docs/decisions/0040-servers-for-a-team.md).
"""

from __future__ import annotations

import atexit
import base64
import hmac
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from densitywatch.errors import DensitywatchError
from densitywatch.tracking import database, schemas
from pipelines import listening, prefect_home
from pipelines.listening import HOST

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEALTH = "/health"
START_SECONDS = 180.0  # a first start on a busy machine makes a database before it answers
STOP_SECONDS = 10.0
LOG_SECONDS = 5
VACUUM = "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"
LEAST_FREE = 1 << 20
"""Bytes without which no server writes its database."""


class ServiceFailed(DensitywatchError):
    """A server did not start, or it does not answer."""


class OwnPagesOnly:
    """An ASGI application that makes the checks and hands on to `app` what passes.

    `login`: the name:password to ask for, by HTTP's basic authentication, except for /health; None leaves it to `app`.
    Every answer has a header that tells this checkout's servers from others (prefect_home.is_own).
    """

    def __init__(self, app: ASGIApp, root: Path, login: str | None = None) -> None:
        self.app = app
        self.names = listening.names()
        self.mark = (prefect_home.HEADER.encode(), prefect_home.mark(root).encode())
        self.expected = None if login is None else b"Basic " + base64.b64encode(login.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.responses import PlainTextResponse

        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        host, origin = headers.get(b"host", b"").decode("latin-1"), headers.get(b"origin")
        refusal = None
        if _name(host) not in self.names:
            refusal = PlainTextResponse("unknown host", status_code=400)
        elif origin is not None and _place(origin.decode("latin-1")) != host.lower():
            refusal = PlainTextResponse("not from another site's page", status_code=403)
        elif not self._may(scope, headers.get(b"authorization", b"")):
            ask = {"WWW-Authenticate": 'Basic realm="densitywatch", charset="UTF-8"'}
            refusal = PlainTextResponse("log in", status_code=401, headers=ask)

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), self.mark]
            await send(message)

        await (refusal or self.app)(scope, receive, send_marked)

    def _may(self, scope: Scope, given: bytes) -> bool:
        if self.expected is None or (scope["type"] == "http" and scope["path"] == HEALTH):
            return True
        return hmac.compare_digest(given, self.expected)


def _place(address: str) -> str | None:
    """Host and port of an address; None for what is no address."""
    with suppress(ValueError):
        return urlsplit(address).netloc.lower()
    return None


def _name(host: str) -> str | None:
    with suppress(ValueError):
        return urlsplit(f"//{host}").hostname
    return None


def command(port: int | str, *, temporary: bool = False) -> list[str]:
    """The command line of the server; a `temporary` one ends with its parent."""
    return [sys.executable, "-m", "pipelines.server", str(port), *(["--temporary"] if temporary else [])]


def variables(root: Path, port: int | str) -> dict[str, str]:
    """Variables that the server's process needs in addition to the caller's."""
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root.resolve()), os.environ.get("PYTHONPATH")])),
        "PREFECT_SERVER_API_AUTH_STRING": prefect_home.login(root),
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{listening.reached()}:{port}",
        "PREFECT_UI_API_URL": "/api",  # the page works under either name and through a tunnel
        VACUUM: os.environ.get(VACUUM, "events,flow_runs"),  # else the database grows with every look
        **database.prefect_variables(),
    }


_TEMPORARY: list[subprocess.Popen[bytes]] = []


def is_temporary() -> bool:
    """Whether the server that this process talks to is its own, from `start_temporary`."""
    return bool(_TEMPORARY)


def start_temporary(root: Path) -> str:
    """Start a server without a page that ends with this process; set and return the address of its API.

    Raises ServiceFailed when it does not come up.
    """
    schemas.prepare(root)
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    address, log = f"http://{HOST}:{port}/api", root / "var" / "log" / "prefect-temporary.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: S603
            command(port, temporary=True),
            cwd=root,
            env={**os.environ, **variables(root, port), "PREFECT_UI_ENABLED": "false"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C goes to the flow alone, which then tells the server how it ended
        )
    _TEMPORARY.append(process)
    atexit.register(stop_temporary)
    until = time.monotonic() + START_SECONDS
    while not prefect_home.answers(f"{address}/health"):
        if process.poll() is not None or time.monotonic() > until:
            raise ServiceFailed(f"Prefect's temporary server did not start: {last_words(log)}; see {log}")
        time.sleep(0.1)
    os.environ["PREFECT_API_URL"] = address
    os.environ["PREFECT_API_AUTH_STRING"] = prefect_home.login(root)
    return address


def last_words(log: Path) -> str:
    """Why a program ended as it started: a full disk, or the last line of its log that has a letter.

    Frames that some programs draw are left out.
    """
    if shutil.disk_usage(log.parent).free < LEAST_FREE:
        return "the disk is full; free some space"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line.strip(" \t│|╭╮╰╯─") for line in lines if re.search(r"\w", line)]
    return said[-1] if said else "its log is empty"


def send_logs() -> None:
    """Send what Prefect still has to log, so that what it says of that stands before our last line."""
    if "prefect.logging.handlers" in sys.modules:
        from prefect.logging.handlers import APILogWorker

        with suppress(Exception):  # a server that does not answer any more
            APILogWorker.drain_all(timeout=LOG_SECONDS)


def stop_temporary() -> None:
    """End the server of `start_temporary`, if there is one."""
    while _TEMPORARY:
        process = _TEMPORARY.pop()
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def end_with(parent: int) -> None:
    """End this process when its parent is gone, even by a kill; works on every system."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(STOP_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: list[str]) -> int:
    temporary = "--temporary" in arguments
    if temporary:
        end_with(os.getppid())
    import uvicorn
    from prefect.server.api.server import create_app

    app = OwnPagesOnly(create_app(ephemeral=temporary, final=True), Path.cwd())
    uvicorn.run(
        app,
        host=HOST if temporary else listening.host(),
        port=int(arguments[0]),
        log_level="error" if temporary else "info",
        access_log=False,
        timeout_graceful_shutdown=1 if temporary else 5,  # a stopped run has five seconds in all
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
