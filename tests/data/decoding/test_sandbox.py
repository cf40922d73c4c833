from __future__ import annotations

import gc
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from densitywatch.data.decoding import sandbox
from densitywatch.data.decoding.sandbox import Answer, ReaderDied, answers
from densitywatch.errors import DataError

READERS = """
import os, signal, time
from densitywatch.errors import DataError
from densitywatch.data.decoding.sandbox import Answer, allow

def numbers(request):
    for number in range(request.facts["count"]):
        yield Answer({"number": number}, bytes(request.facts.get("bytes", 0)))

def blobs(request):
    for blob in request.blobs:
        if blob == b"crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        yield Answer({"pid": os.getpid()}, blob[::-1])

def lines(request):
    for line in request.file:
        yield Answer({"at": request.file.tell()}, line)

def tail(request):
    request.file.seek(-4, os.SEEK_END)
    yield Answer({}, request.file.read())

def refuse(request):
    yield Answer({})
    raise DataError("a sentence of the reader's")

def surprise(request):
    raise KeyError("a\\nkey")
    yield

def compute(request):
    yield Answer({})
    if request.facts.get("more"):
        allow(request.facts["more"], 1 << 28)
    end = time.process_time() + request.facts["seconds"]
    while time.process_time() < end:
        pass
    yield Answer({})

def fill(request):
    if request.facts.get("more"):
        allow(5, request.facts["more"])
    filled = bytearray(request.facts["bytes"])
    yield Answer({"filled": len(filled)})

def environment(request):
    print("what a library prints")
    yield Answer(dict(os.environ))

def sleep(request):
    yield Answer({"pid": os.getpid()})
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "readers.py").write_text(READERS, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    sandbox.close()  # those that run do not know the path
    yield
    sandbox.close()


def ask(name: str, facts: dict[str, Any] | None = None, **options: Any) -> list[Answer]:
    return list(answers(f"readers:{name}", facts or {}, **options))


def children() -> list[psutil.Process]:
    return [
        child for child in psutil.Process().children() if "densitywatch.data.decoding.sandbox_child" in child.cmdline()
    ]


@pytest.mark.parametrize("together", [False, True])
def test_answers_come_whole_and_in_order(together: bool) -> None:
    found = ask("numbers", {"count": 300, "bytes": 5000}, together=together)
    assert [answer.facts["number"] for answer in found] == list(range(300))
    assert {answer.data for answer in found} == {bytes(5000)}


def test_one_child_serves_request_after_request() -> None:
    first, second = (ask("blobs", blobs=[b"abc", b""]) for _ in range(2))
    assert [answer.data for answer in first] == [b"cba", b""]
    assert first[0].facts == second[0].facts
    assert len(children()) == 1


def test_a_child_that_crashes_is_a_reason_and_the_next_request_has_a_new_one() -> None:
    with pytest.raises(ReaderDied, match="made its reader crash \\(SIGSEGV\\)"):
        ask("blobs", blobs=[b"crash"])
    assert ask("blobs", blobs=[b"ab"])[0].data == b"ba"


def test_a_child_that_was_killed_while_it_waited_costs_nothing() -> None:
    pid = ask("blobs", blobs=[b"ab"])[0].facts["pid"]
    os.kill(pid, signal.SIGKILL)
    assert ask("blobs", blobs=[b"ab"])[0].facts["pid"] != pid


def test_computing_beyond_the_allowance_is_a_reason() -> None:
    with pytest.raises(ReaderDied, match=r"more than 0\.3 seconds of computing.*leave it out"):
        ask("compute", {"seconds": 60}, seconds=0.3)


def test_a_reader_that_knows_its_file_is_large_may_ask_for_more() -> None:
    assert len(ask("compute", {"seconds": 0.6, "more": 60}, seconds=0.3)) == 2
    with pytest.raises(ReaderDied, match=r"more than 0\.5 seconds"):
        ask("compute", {"seconds": 60, "more": 0.5}, seconds=30)


def test_memory_beyond_the_allowance_is_a_reason_and_the_child_lives_on() -> None:
    with pytest.raises(DataError, match="more than 64 MiB of memory"):
        ask("fill", {"bytes": 200 << 20}, memory=64 << 20)
    assert ask("fill", {"bytes": 200 << 20, "more": 256 << 20}, memory=64 << 20)[0].facts["filled"] == 200 << 20
    assert len(children()) == 1


def test_what_a_reader_refuses_or_trips_over_is_a_data_error_of_one_line() -> None:
    with pytest.raises(DataError, match="a sentence of the reader's"):
        ask("refuse")
    with pytest.raises(DataError, match=r"broken \('a\\nkey'\)"):
        ask("surprise")


def test_a_local_file_and_any_other_file_object_are_read(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    text = b"".join(b"%d\n" % number for number in range(50_000))
    path.write_bytes(text)
    with path.open("rb") as file:
        file.read(7)  # wherever the caller stands in it
        assert b"".join(answer.data for answer in ask("tail", file=file)) == b"999\n"
        assert b"".join(answer.data for answer in ask("lines", file=file, together=True)) == text
    assert b"".join(answer.data for answer in ask("lines", file=io.BytesIO(text), together=True)) == text
    assert ask("tail", file=io.BytesIO(text))[0].data == b"999\n"


def test_what_the_callers_own_file_raises_is_raised(tmp_path: Path) -> None:
    class Lost(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise ConnectionResetError("the store is gone")

    with pytest.raises(ConnectionResetError, match="the store is gone"):
        ask("lines", file=Lost())


def test_a_stream_that_is_closed_early_leaves_no_child() -> None:
    stream = answers("readers:numbers", {"count": 1_000_000, "bytes": 1000})
    assert next(stream).facts == {"number": 0}
    stream.close()  # type: ignore[attr-defined]
    assert children() == []


def test_several_streams_can_be_open_at_once() -> None:
    streams = [answers("readers:numbers", {"count": 3}) for _ in range(6)]
    assert [[next(stream).facts["number"] for stream in streams] for _ in range(3)] == [[n] * 6 for n in range(3)]
    assert [list(stream) for stream in streams] == [[]] * 6
    assert len(children()) == sandbox.KEPT


def test_the_child_sees_no_secrets_and_prints_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert "secret" not in ask("environment")[0].facts.values()
    assert capfd.readouterr() == ("", "")


def test_children_end_with_a_parent_that_is_killed() -> None:
    code = (
        "from densitywatch.data.decoding.sandbox import answers\n"
        "print(next(answers('readers:sleep', {})).facts['pid'], flush=True)\n"
        "input()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], *sys.path])}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.1)
    else:
        raise AssertionError("the child outlives its parent")


def test_nothing_is_left_open() -> None:
    before = len(psutil.Process().open_files()) + psutil.Process().num_fds()
    ask("blobs", blobs=[b"ab"])
    sandbox.close()
    gc.collect()
    assert len(psutil.Process().open_files()) + psutil.Process().num_fds() == before
    assert children() == []
