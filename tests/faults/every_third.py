"""A server in front of another one, which answers 500 to every third request; and a plain store of files by HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

Lost = Literal["the request", "the answer"]
"""What a 500 means: the request never reached the server behind, or it did its work there and the answer was lost."""
NOT_HANDED_ON = {"connection", "content-length", "host", "transfer-encoding"}


class Proxy(ThreadingHTTPServer):
    """Counts what it was asked, and what it answered with 500."""

    daemon_threads = True

    def __init__(self, upstream: str, lost: Lost) -> None:
        super().__init__(("127.0.0.1", 0), _Handed)
        self.upstream, self.lost = upstream, lost
        self.asked, self.failed, self.counting = 0, 0, threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def is_third(self) -> bool:
        with self.counting:
            self.asked += 1
            third = self.asked % 3 == 0
            self.failed += third
            return third


class _Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def answer(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


class _Handed(_Quiet):
    server: Proxy

    def handle_request(self) -> None:
        data, third = self.body(), self.server.is_third()
        if third and self.server.lost == "the request":
            self.answer(500, b"every third request fails")
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in NOT_HANDED_ON}
        asked = Request(self.server.upstream + self.path, data or None, headers, method=self.command)
        try:
            with build_opener(ProxyHandler({})).open(asked, timeout=120) as got:
                status, answer, given = got.status, got.read(), got.headers
        except HTTPError as error:
            with error:
                status, answer, given = error.code, error.read(), error.headers
        if third:
            self.answer(500, b"the answer to every third request is lost")
            return
        self.answer(
            status, answer, {n: v for n, v in given.items() if n.lower() not in NOT_HANDED_ON | {"date", "server"}}
        )

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_request


class _Files(_Quiet):
    """Files under a folder: GET and HEAD read, POST and PUT write."""

    folder: Path

    def do_GET(self) -> None:
        file = self.folder / self.path.lstrip("/")
        if not file.is_file():
            self.answer(404)
        else:
            self.answer(200, file.read_bytes())

    do_HEAD = do_GET

    def do_POST(self) -> None:
        data, file = self.body(), self.folder / self.path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        self.answer(200)

    do_PUT = do_POST


@contextmanager
def served(server: ThreadingHTTPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def every_third_fails(upstream: str, lost: Lost) -> Iterator[Proxy]:
    proxy = Proxy(upstream, lost)
    with served(proxy):
        yield proxy


@contextmanager
def files_by_http(folder: Path) -> Iterator[str]:
    """The address of a store of files, such as DVC uses for a remote."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Files", (_Files,), {"folder": folder}))
    server.daemon_threads = True
    with served(server):
        yield f"http://127.0.0.1:{server.server_address[1]}"
