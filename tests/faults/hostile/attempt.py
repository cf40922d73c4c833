"""One hostile input at one door: whether it was taken, refused, made the program crash or hang, or got out."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hypothesis.strategies import SearchStrategy

from densitywatch.errors import DensitywatchError

Outcome = Literal["taken", "refused", "crashed", "escaped", "hung"]
Enter = Callable[[Any], None]
INSIDE, OUTSIDE = "inside", "outside"
KEPT = "what is next to the folder stays as it is\n"
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "shutil.rmtree")
_PROGRAMS = ("os.system", "os.exec", "os.spawn", "os.posix_spawn", "pty.spawn")


@dataclass(frozen=True)
class Door:
    """A place where outside bytes come in."""

    name: str
    cases: SearchStrategy[Any]
    opened: Callable[[Path], Enter]
    """Given an empty folder: prepares what is needed there and returns what takes one case."""
    refusals: tuple[type[BaseException], ...] = (DensitywatchError,)
    """The documented errors. Any other exception is a crash."""
    share: int = 300
    """Inputs of a whole run."""
    quick: int = 12
    """Inputs in the usual tests."""
    seconds: float = 20.0
    """A case that takes longer hangs. Decoders may compute for some seconds before they are stopped."""
    inputs: Callable[[Any], int] = lambda case: 1
    """Number of inputs in a case."""


@dataclass
class Tried:
    """What came of one case."""

    outcome: Outcome
    why: str = ""


class Hung(BaseException):
    """A case took longer than its door allows."""


class _Escape(Exception):
    """Something was touched outside of the folder."""


@dataclass
class _Watch:
    folder: Path | None = None
    seen: list[str] = field(default_factory=list)


_watch = _Watch()


def attempt(door: Door, enter: Enter, case: Any, folder: Path) -> Tried:
    """Put `case` through the door; `folder` has INSIDE, where it may write, and OUTSIDE, where it may not."""
    try:
        with _watched(folder), _limited(door.seconds):
            enter(case)
        found = Tried("taken")
    except Hung:
        found = Tried("hung", f"more than {door.seconds:g} seconds")
    except door.refusals as error:
        text = str(error)
        found = Tried("refused") if _is_a_sentence(text) else Tried("crashed", f"no sentence: {text[:300]!r}")
    except Exception as error:
        found = Tried("crashed", "".join(traceback.format_exception(error))[-3000:])
    if _watch.seen or not untouched(folder):
        found = Tried("escaped", "; ".join(_watch.seen[:5]) or f"what is in {folder / OUTSIDE} has changed")
    return found


def _is_a_sentence(text: str) -> bool:
    """One line that names what is wrong and shows no inside of the program."""
    return bool(text.strip()) and "\n" not in text and "Traceback" not in text


def lay(folder: Path) -> Path:
    """Make INSIDE and OUTSIDE in `folder`; returns INSIDE."""
    inside, outside = folder / INSIDE, folder / OUTSIDE
    inside.mkdir(parents=True)
    outside.mkdir()
    (outside / "kept.txt").write_text(KEPT)
    return inside


def untouched(folder: Path) -> bool:
    """Whether nothing has appeared or changed next to the inside."""
    outside = folder / OUTSIDE
    return (
        sorted(path.name for path in folder.iterdir()) == [INSIDE, OUTSIDE]
        and [path.name for path in outside.iterdir()] == ["kept.txt"]
        and (outside / "kept.txt").read_text() == KEPT
        and not Path("/tmp/escaped").exists()
    )


@contextmanager
def _watched(folder: Path) -> Iterator[None]:
    _hook()
    _watch.folder, _watch.seen = folder / INSIDE, []
    try:
        yield
    finally:
        _watch.folder = None


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _look(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: notes what is written outside, what is started, and where a connection goes."""
    if _watch.folder is None:
        return
    if event == "open":
        path, _, flags = arguments
        if isinstance(flags, int) and flags & _WRITES and not _allowed(path):
            _watch.seen.append(f"writes {path!r}"[:200])
    elif event in _CHANGES:
        if any(isinstance(path, str | bytes | os.PathLike) and not _allowed(path) for path in arguments[:2]):
            _watch.seen.append(f"{event} {arguments[:2]!r}"[:200])
    elif event == "subprocess.Popen":
        if "densitywatch.data.decoding.sandbox_child" not in arguments[1]:
            _watch.seen.append(f"starts {arguments[1]!r}"[:200])
    elif event in _PROGRAMS or event == "pickle.find_class":
        _watch.seen.append(f"{event} {arguments!r}"[:200])
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        _watch.seen.append(f"connects to {arguments[1]!r}"[:200])


def _allowed(path: Any) -> bool:
    if isinstance(path, int) or path is None:
        return True
    real = os.path.realpath(os.fsdecode(path))
    return real == os.devnull or Path(real).is_relative_to(os.path.realpath(_watch.folder or "/"))


_hooked: list[bool] = []


def _hook() -> None:
    if not _hooked:
        _hooked.append(True)
        sys.addaudithook(_look)
