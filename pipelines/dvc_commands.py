"""DVC as a child process: find stale stages, run one, push and pull; and what its remote needs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from densitywatch import stopping
from densitywatch.errors import DensitywatchError
from densitywatch.tracking.store import plain

Outcome = Literal["ran", "restored", "skipped"]
ADVICE = (
    "Updating lock file",
    "Generating lock file",
    "To track the changes with git",
    "git add",
    "To enable auto staging",
    "dvc config core.autostage",
    "Use `dvc push`",
)
"""Lines of advice that DVC prints after each stage, for people who type its commands; they are not shown."""


REMOTES = {
    "s3": "dvc_s3",
    "gs": "dvc_gs",
    "azure": "dvc_azure",
    "gdrive": "dvc_gdrive",
    "oss": "dvc_oss",
    "ssh": "dvc_ssh",
    "hdfs": "dvc_hdfs",
    "webhdfs": "dvc_webhdfs",
    "webdav": "dvc_webdav",
    "webdavs": "dvc_webdav",
}
"""The module that DVC needs for each kind of remote; the one for http is always installed."""


TRANSFER_SECONDS = 3 * 3600.0
"""How long a push or a pull may take: 100 GB at 10 MB/s. A connection that hangs would hold the run lock for ever."""
RESTORE = str(Path(__file__).with_name("dvc_restore.py"))
SINGLE = "--single-item"


class StageFailed(DensitywatchError):
    """A stage of dvc.yaml ended with an error."""


def stale_stages(root: Path) -> set[str]:
    """The stages that `dvc status` finds changed; empty when everything is up to date.

    One that runs every time is among them only when something else about it has changed.

    Raises StageFailed as `status` does.
    """
    return {name for name, changes in status(root).items() if changes != ["always changed"]}


def status(root: Path) -> dict[str, list[Any]]:
    """What `dvc status --json` says: for each stage that is not up to date, its changes.

    Raises StageFailed with DVC's own words when dvc.yaml, params.yaml or the repository cannot be read.
    """
    with _started([*_dvc(), "status", "--json"], root, stderr=subprocess.PIPE) as process:
        found, said = process.communicate()
    if process.returncode != 0:
        stopping.stop_if_asked()
        raise StageFailed(f"dvc status: {_last_line(said.splitlines())}")
    return dict(json.loads(found))


def run_stage(name: str, root: Path, say: Callable[[str], None], *, restore: bool = False) -> Outcome:
    """Bring one stage up to date by `dvc repro --single-item`, passing each line of its output to `say`.

    Several stages may run at once: each waits for DVC's lock. `--single-item` does not look upstream, so the caller
    keeps the order.

    restore: do not run it, but take its result from the run cache of the default remote, or fail.

    Raises StageFailed with the last line of the stage, or where to restore it takes longer than TRANSFER_SECONDS;
    Stopped when this process was told to stop.
    """
    lines: list[str] = []
    command = [sys.executable, "-P", RESTORE, name] if restore else [*_dvc("--wait-for-lock"), "repro", SINGLE, name]
    limit = TRANSFER_SECONDS if restore else None
    with _started(command, root) as process, _within(limit, process, f"restoring {name}"):
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip():
                lines.append(line.rstrip())
                if lines[-1].startswith(("Running stage ", "Stage ")):
                    _left_alone.add(process)
                if not line.strip().startswith(ADVICE) and not stopping.asked():
                    say(lines[-1])
    if process.returncode != 0:
        stopping.stop_if_asked()
        raise StageFailed(f"stage {name}: {_last_line(lines)}")
    if any(line.startswith(f"Stage '{name}' didn't change") for line in lines):
        return "skipped"
    if any(line.startswith((f"Stage '{name}' is cached", "Pulling data for")) for line in lines):
        return "restored"
    return "ran"


def stage_of(command: list[str]) -> str | None:
    """The stage that a process of `run_stage` brings up to date; None where the command is of another kind."""
    return command[-1] if SINGLE in command or RESTORE in command else None


def run_dvc(root: Path, *arguments: str) -> str:
    """Run a DVC command and return what it printed.

    Raises StageFailed with its last line, or where a push or a pull takes longer than TRANSFER_SECONDS.
    """
    limit = TRANSFER_SECONDS if arguments[0] in ("push", "pull") else None
    command = [*_dvc("--wait-for-lock"), *arguments]
    with _started(command, root) as process, _within(limit, process, f"dvc {arguments[0]}"):
        said, _ = process.communicate()
    if process.returncode != 0:
        stopping.stop_if_asked()
        raise StageFailed(f"dvc {arguments[0]}: {_last_line(said.splitlines())}")
    return said.strip()


def default_remote(root: Path) -> str | None:
    """The address of the default DVC remote, a local one as an absolute path; None where none is set."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        name = repo.config["core"].get("remote")
        return str(repo.config["remote"][name]["url"]) if name else None


def check_remote(remote: str | None) -> None:
    """Check before a run, and not at its end, that DVC has the package for its remote.

    Raises StageFailed, which says what to install.
    """
    scheme = (remote or "").partition("://")[0].lower()
    module = REMOTES.get(scheme)
    if module is None or find_spec(module) is not None:
        return
    package = module.replace("_", "-")
    wanted = "-e '.[s3]'" if package == "dvc-s3" else package
    raise StageFailed(
        f"the DVC remote {plain(str(remote))} needs the package {package};"
        f" install it: .venv/bin/python -m pip install {wanted}"
    )


def holds_something(remote: str) -> bool:
    """Whether a pull can bring something: always from an address, from a folder when it is not empty."""
    return "://" in remote or (Path(remote).is_dir() and any(Path(remote).iterdir()))


def child_environment() -> dict[str, str]:
    """This process's environment, with this Python's programs first on the path, and unbuffered output."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": programs, "PYTHONUNBUFFERED": "1"}


def interrupt_waiting() -> None:
    """Interrupt every DVC whose stage has not begun; call it when this process was told to stop.

    A DVC whose stage runs ends with the stage. A DVC that records what a stage made is not interrupted: it would leave
    half a dvc.lock. Nothing starts after this, because `stopping.asked` is checked under the same lock.
    """
    with _starting:
        for process in _running - _left_alone:
            process.send_signal(signal.SIGINT)


_running: set[subprocess.Popen[str]] = set()
_left_alone: set[subprocess.Popen[str]] = set()
_starting = threading.Lock()


def _dvc(*options: str) -> list[str]:
    return [sys.executable, "-m", "dvc", *options]


@contextmanager
def _started(command: list[str], root: Path, stderr: int = subprocess.STDOUT) -> Iterator[subprocess.Popen[str]]:
    """Run DVC in its own session, so that Ctrl-C in the terminal reaches this process alone."""
    with _starting:
        stopping.stop_if_asked()
        process: subprocess.Popen[str] = subprocess.Popen(  # noqa: S603
            command,
            cwd=root,
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        _running.add(process)
    with process:
        try:
            yield process
        finally:
            with _starting:
                _running.discard(process)
                _left_alone.discard(process)


@contextmanager
def _within(seconds: float | None, process: subprocess.Popen[str], what: str) -> Iterator[None]:
    """Kill the process after so many seconds, with what it started, and then raise StageFailed; None: wait for it."""
    if seconds is None:
        yield
        return
    over = threading.Event()

    def end() -> None:
        over.set()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # an ssh say is in its session, too

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if over.is_set():
        raise StageFailed(
            f"{what}: not done within {seconds / 3600:.1f} h, so it was ended; see whether the remote answers, and run"
            " it again: what is there already is not sent twice"
        )


def _last_line(lines: list[str]) -> str:
    """The reason of a failure, from a program's lines: our sentence, else the end of a traceback, else DVC's error."""
    said = [line.strip() for line in lines if line.strip()]
    for line in reversed(said):
        if line.startswith("densitywatch: "):
            return line.removeprefix("densitywatch: ")
    errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
    if any(line.startswith("Traceback (") for line in said):
        return [line for line in said if not line.startswith("ERROR: ")][-1]
    return errors[-1] if errors else " ".join(" ".join(said).split())[:300] or "it ended without a message"
