"""The child of sandbox.py: `python -m densitywatch.data.decoding.sandbox_child DESCRIPTOR`; the descriptor is a socket.

It imports a reader when it is first asked for, serves one request after the other, and ends with its parent. The kernel
enforces the limits: a timer of CPU time whose signal ends the process, and a limit on the address space.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from densitywatch.data.decoding import sandbox
from densitywatch.data.decoding.sandbox import Answer, Request, frame, receive
from densitywatch.errors import DataError
from densitywatch.text import one_line

LOOKS = 0.25
"""Seconds between two checks that the parent is alive and, on macOS, that the child is not too large."""


class Line:
    """The socket to the parent: answers are sent one by one, or several together."""

    def __init__(self, to_parent: socket.socket) -> None:
        self.socket = to_parent
        self.waiting = bytearray()
        self.since = time.monotonic()

    def exactly(self, size: int) -> bytes:
        # no byte more than asked for: the next one may carry a file's descriptor
        parts = []
        while size > 0:
            part = self.socket.recv(min(size, 1 << 20))
            if not part:
                break
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def put(self, header: dict[str, Any], data: bytes = b"", *, at_once: bool = True) -> None:
        self.waiting += frame(header, data)
        if at_once or len(self.waiting) > 1 << 16 or time.monotonic() - self.since > 0.005:
            self.flush()

    def flush(self) -> None:
        self.socket.sendall(self.waiting)
        self.waiting.clear()
        self.since = time.monotonic()


class ParentsFile(io.RawIOBase):
    """A file object in the parent, read through the socket."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_CUR:
            offset += self._at
        elif whence == os.SEEK_END:
            self._line.put({"kind": "read", "offset": -1, "size": 0})
            offset += int(receive(self._line.exactly)[0]["length"])
        if offset < 0:
            raise OSError("a position before the file's start")
        self._at = offset
        return offset

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        self._line.put({"kind": "read", "offset": self._at, "size": len(view)})
        _, data = receive(self._line.exactly)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def main(descriptor: int) -> None:
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C of the terminal is handled by the parent
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    line = Line(socket.socket(fileno=descriptor))
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    line.put({"kind": "ready"})
    while True:
        try:
            request, data = receive(line.exactly)
        except EOFError:
            return
        serve(line, request, data)


def serve(line: Line, request: dict[str, Any], data: bytes) -> None:
    blobs, at = [], 0
    for size in request["sizes"]:
        blobs.append(data[at : at + size])
        at += size
    del data
    try:
        read = _reader(request["reader"])  # before the limits: its imports do not count
        with _file(line, request["file"]) as file, _limited(line, request["seconds"], request["memory"]):
            for answer in read(Request(request["facts"], blobs, file)):
                line.put({"kind": "answer", "facts": answer.facts}, answer.data, at_once=not request["together"])
                _clock(request["seconds"])
        end: dict[str, Any] = {"kind": "end"}
    except DataError as error:
        end = {"kind": "refused", "reason": str(error)}
    except MemoryError:
        mib = _now["memory"] >> 20
        end = {
            "kind": "refused",
            "reason": f"reading it takes more than {mib} MiB of memory; save it again or leave it out",
        }
    except Exception as error:  # a crafted file can make a library raise anything
        end = {"kind": "refused", "reason": f"broken ({one_line(error)})"}
    line.put(end)


def _reader(name: str) -> Callable[[Request], Iterator[Answer]]:
    module, _, function = name.partition(":")
    found: Callable[[Request], Iterator[Answer]] = getattr(importlib.import_module(module), function)
    return found


@contextlib.contextmanager
def _file(line: Line, kind: str | None) -> Iterator[BinaryIO | None]:
    if kind is None:
        yield None
    elif kind == "descriptor":
        _, descriptors, _, _ = socket.recv_fds(line.socket, 1, 1)
        with os.fdopen(descriptors[0], "rb") as file:
            file.seek(0)
            yield file
    else:
        yield io.BufferedReader(ParentsFile(line), 1 << 18)


_now: dict[str, int] = {"memory": sandbox.MEMORY, "held": 0}


@contextlib.contextmanager
def _limited(line: Line, seconds: float, memory: int) -> Iterator[None]:
    def allowed(seconds: float, memory: int) -> None:
        line.put({"kind": "allowed", "seconds": seconds, "memory": memory})
        _now["memory"] = memory
        _space(memory)
        _clock(seconds)

    _now.update(memory=memory, held=_held())
    sandbox.allowed = allowed
    try:
        _space(memory)
        _clock(seconds)
        yield
    finally:
        _clock(0)
        _space(None)
        sandbox.allowed = None


def _clock(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _space(memory: int | None) -> None:
    """Limit the address space to `memory` more than before the request; None takes the limit away."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = hard if memory is None else _now["held"] + memory
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    with contextlib.suppress(ValueError, OSError):  # macOS has the name without the limit: there _watch does it
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _held() -> int:
    """Bytes of the address space; where there is no /proc, the peak of the resident memory."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 (each request does it)
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return _peak()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        if sys.platform == "darwin" and _peak() > _now["held"] + _now["memory"]:
            os._exit(sandbox.TOO_MUCH_MEMORY)
        time.sleep(LOOKS)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
