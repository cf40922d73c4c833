"""Untrusted files are read in a child process that has little memory and little time, and that may die.

A crafted file can make a decoder compute for minutes, fill the memory or crash. So a *reader* runs in a child process:
without torch, without the secrets of the environment, with a limit on memory and on CPU time for each answer. Whatever
kills the child becomes a DataError about the one file, and the next request starts a new child. It is no protection
against a decoder that is made to run foreign code: the child may still open files and connections of this user.

How to add a reader: write, in a light module (no torch), a generator function

    def members(request: Request) -> Iterator[Answer]:
        for name, data in ... request.file ...:
            yield Answer({"path": name}, data)       # facts: values of JSON; data: bytes

and ask for it with

    for answer in answers("densitywatch.data.inputs.archives:members", {"kind": "zip"}, file=opened): ...

`request.facts`, `request.blobs` and `request.file` are what the caller gave. An open local file is passed as a
descriptor; any other file object (fsspec) is read through the parent. A DataError of the reader is raised at the
caller, and any other exception of the reader too, as a DataError. The clock of CPU time starts again with each answer.
A reader that finds that a file is large may ask for more with `allow(seconds, memory)`. Let a generator run to its end
or close it.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from densitywatch.errors import DataError, DensitywatchError

SECONDS = 5.0
"""CPU seconds until the next answer, unless the caller or the reader asks for more."""
MEMORY = 256 << 20
"""Bytes beyond what the child holds before a request."""
KEPT = 4
"""Number of idle children that are kept for the next request."""
MAX_FACTS = 1 << 20
MAX_DATA = 256 << 20
START_SECONDS = 120.0
TOO_MUCH_MEMORY = 77
"""The exit code of a child that finds itself too large, where the system has no limit on memory (macOS)."""

_HEAD = struct.Struct("!II")
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH")


class Answer(NamedTuple):
    """One answer of a reader."""

    facts: dict[str, Any]
    data: bytes = b""


class Request(NamedTuple):
    """What a reader is asked."""

    facts: dict[str, Any]
    blobs: list[bytes]
    file: BinaryIO | None


class ReaderDied(DataError):
    """The child reached a limit or crashed; the next answer is lost."""


class SandboxFailed(DensitywatchError):
    """No child can be started on this machine; no file is at fault."""


allowed: Callable[[float, int], None] | None = None
"""In a child: what `allow` calls."""


def allow(seconds: float, memory: int) -> None:
    """For readers: the CPU seconds until the next answer, from now on, and the bytes of memory.

    Does nothing outside of a child.
    """
    if allowed is not None:
        allowed(seconds, memory)


def answers(
    reader: str,
    facts: Mapping[str, Any],
    *,
    blobs: Sequence[bytes] = (),
    file: BinaryIO | None = None,
    seconds: float = SECONDS,
    memory: int = MEMORY,
    together: bool = False,
) -> Iterator[Answer]:
    """The answers of `reader` ("package.module:function"), which runs in a child process.

    `together`: several answers may be sent at once, which is faster for small ones; when the child dies, those not yet
    sent are lost. Raises DataError as the reader does, ReaderDied when a limit or a crash ended it.
    """
    waited = _idle_child()
    child = waited or _Child()
    whole = False
    try:
        request = {"reader": reader, "facts": dict(facts), "seconds": seconds, "memory": memory, "together": together}
        try:
            child.ask(request, blobs, file)
            answer = child.next_answer(file)
        except (ConnectionError, EOFError):
            if waited is None or child.process.wait(timeout=10) == -signal.SIGPROF:
                raise
            child.end()  # it may have been killed while it waited, which is not the fault of this file
            child = _Child()
            child.ask(request, blobs, file)
            answer = child.next_answer(file)
        while answer is not None:
            yield answer
            answer = child.next_answer(file)
        whole = True
    except _Refused as error:  # the reader has ended, the child is in order
        whole = True
        raise DataError(str(error)) from None
    except _FileFailed as error:
        raise error.cause from None
    except (OSError, EOFError, ValueError) as error:
        raise ReaderDied(child.reason(error)) from None
    finally:
        if whole:
            _keep(child)
        else:
            child.end()


class _Refused(Exception):
    """The reader's own DataError."""


class _FileFailed(Exception):
    """The caller's file object raised an exception, which is passed on to the caller."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class _Child:
    """One process and the socket to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.socket = ours
        self.seconds, self.memory = SECONDS, MEMORY
        try:
            with theirs:
                command = [sys.executable, "-P", "-m", "densitywatch.data.decoding.sandbox_child", str(theirs.fileno())]
                self.process = subprocess.Popen(  # noqa: S603 (this interpreter and a module of this package)
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,  # libraries print parts of untrusted files, which no terminal should get
                    pass_fds=[theirs.fileno()],
                    env=_environment(),
                )
        except OSError as error:
            ours.close()
            raise SandboxFailed(
                f"no process to read files in can be started ({error}); free memory or processes"
            ) from None
        self.stream = ours.makefile("rb", buffering=1 << 16)
        ours.settimeout(START_SECONDS)
        try:
            receive(self.stream.read)
        except (OSError, EOFError, ValueError) as error:
            why = self.reason(error)
            self.end()
            raise SandboxFailed(
                f"the process to read files in ended as it started ({why}); run `densitywatch doctor`"
            ) from None

    def ask(self, request: dict[str, Any], blobs: Sequence[bytes], file: BinaryIO | None) -> None:
        self.seconds, self.memory = request["seconds"], request["memory"]
        # the child's own clock counts CPU time; this timeout is for a child that hangs
        self.socket.settimeout(60 + 10 * self.seconds)
        descriptor = _descriptor(file)
        request["sizes"] = [len(blob) for blob in blobs]
        request["file"] = None if file is None else "descriptor" if descriptor is not None else "proxy"
        self.socket.sendall(frame(request, *blobs))
        if descriptor is not None:
            socket.send_fds(self.socket, [b"F"], [descriptor])

    def next_answer(self, file: BinaryIO | None) -> Answer | None:
        """The next answer, or None at the end; the child's reads of `file` are served meanwhile."""
        while True:
            header, data = receive(self.stream.read)
            kind = header.get("kind")
            if kind == "answer" and isinstance(header.get("facts"), dict):
                return Answer(header["facts"], data)
            if kind == "end":
                return None
            if kind == "refused":
                raise _Refused(str(header.get("reason"))[:1000])
            if kind == "allowed":
                self.seconds, self.memory = float(header["seconds"]), int(header["memory"])
                self.socket.settimeout(60 + 10 * self.seconds)
            elif kind == "read" and file is not None:
                self._read_for(file, int(header["offset"]), int(header["size"]))
            else:
                raise ValueError("an answer of no known kind")

    def _read_for(self, file: BinaryIO, offset: int, size: int) -> None:
        try:
            if offset < 0:  # how long is it?
                header, data = {"length": file.seek(0, os.SEEK_END)}, b""
            else:
                file.seek(offset)
                header, data = {}, file.read(min(size, MAX_DATA))
        except Exception as error:
            raise _FileFailed(error) from None
        self.socket.sendall(frame(header, data))

    def reason(self, error: Exception) -> str:
        """Why the child has ended, as a clause about the file."""
        if isinstance(error, TimeoutError | ValueError):
            self.process.kill()
        try:
            code = self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if isinstance(error, TimeoutError):
            return "its reader did not answer in time; save it again or leave it out"
        if code == -signal.SIGPROF:
            return (
                f"reading it takes more than {self.seconds:.3g} seconds of computing, more than its size explains; "
                "save it again or leave it out"
            )
        if code in (TOO_MUCH_MEMORY, -signal.SIGKILL):
            return f"reading it takes more than {self.memory >> 20} MiB of memory; save it again or leave it out"
        return f"it made its reader crash ({_named(code)}); save it again or leave it out"

    def end(self) -> None:
        self.stream.close()
        self.socket.close()
        self.process.kill()
        self.process.wait()

    def forget(self) -> None:
        """In a forked copy of the parent, which does not own the child: close the connection to it."""
        self.stream.close()
        self.socket.close()
        self.process.returncode = 0


def _named(code: int) -> str:
    try:
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"
    except ValueError:
        return f"signal {-code}"


def _environment() -> dict[str, str]:
    """The child's environment: without secrets, and with the path to this package."""
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    paths = [str(Path(__file__).resolve().parents[3]), os.environ.get("PYTHONPATH", "")]
    threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    return {**kept, **threads, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def _descriptor(file: BinaryIO | None) -> int | None:
    """The descriptor of a plain open file, read from its start; None for file objects of other kinds."""
    raw = getattr(file, "raw", file)
    if not isinstance(raw, io.FileIO):
        return None
    return raw.fileno()


def frame(header: dict[str, Any], *blobs: bytes) -> bytes:
    """A header as JSON, and bytes, with the lengths of both before them."""
    text = json.dumps(header, separators=(",", ":")).encode()
    return b"".join([_HEAD.pack(len(text), sum(map(len, blobs))), text, *blobs])


def receive(read: Callable[[int], bytes]) -> tuple[dict[str, Any], bytes]:
    """The next frame. Raises EOFError at the end, ValueError for bytes that are no frame."""

    def exactly(size: int) -> bytes:
        data = read(size)
        if len(data) < size:
            raise EOFError("the other side is gone")
        return data

    length, size = _HEAD.unpack(exactly(_HEAD.size))
    if length > MAX_FACTS or size > MAX_DATA:
        raise ValueError("a frame beyond the limits")
    header = json.loads(exactly(length))
    if not isinstance(header, dict):
        raise ValueError("a header that is no object")
    return header, exactly(size)


_idle: list[_Child] = []
_lock = threading.Lock()


def _idle_child() -> _Child | None:
    """An idle child that is still alive, or None."""
    while True:
        with _lock:
            if not _idle:
                return None
            child = _idle.pop()
        if child.process.poll() is None:
            return child
        child.end()


def _keep(child: _Child) -> None:
    with _lock:
        if len(_idle) < KEPT:
            _idle.append(child)
            return
    child.end()


def close() -> None:
    """End the idle children; the next request starts a new one."""
    with _lock:
        waiting, _idle[:] = list(_idle), []
    for child in waiting:
        child.end()


def _forget() -> None:
    global _lock
    _lock = threading.Lock()
    waiting, _idle[:] = list(_idle), []
    for child in waiting:
        with contextlib.suppress(OSError):
            child.forget()


atexit.register(close)
os.register_at_fork(after_in_child=_forget)
