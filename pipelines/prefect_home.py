"""Where Prefect keeps its files and which server a flow talks to; everything stays in the project's `var/`."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from densitywatch import environment

PREFECT_PORT, MLFLOW_PORT, REPORTS_PORT = "4200", "5000", "4400"
LOGIN = Path("var") / "prefect.login"


def settle(root: Path) -> str | None:
    """Set Prefect's variables where the user has not; call it before prefect is imported.

    Returns the address of the server that flows will talk to: the user's own (PREFECT_API_URL), or the one that
    `make up` started, if it answers. None means that there is none yet.
    """
    environment.settle(os.environ)
    (root / "var" / "prefect").mkdir(parents=True, exist_ok=True)  # Prefect makes its own folder, not those above it
    for name, value in {
        "PREFECT_HOME": str(root.resolve() / "var" / "prefect"),
        # a stage that waits for a device asks again every second or two; the default is up to half a minute
        "PREFECT_SERVER_CONCURRENCY_MAXIMUM_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
        # the slots of a dead flow are freed even when the server was restarted in between
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    }.items():
        os.environ.setdefault(name, value)
    address = prefect_address(root)
    if "PREFECT_API_URL" not in os.environ and address is not None and answers(f"{address}/health"):
        os.environ["PREFECT_API_URL"] = address
    if address is not None and os.environ.get("PREFECT_API_URL") == address:
        os.environ["PREFECT_API_AUTH_STRING"] = login(root)
    return os.environ.get("PREFECT_API_URL")


def prefect_address(root: Path) -> str | None:
    """The API address that `make up` wrote into var/, whether it still answers or not."""
    note = root / "var" / "prefect.address"
    return note.read_text(encoding="utf-8").strip() if note.is_file() else None


def login(root: Path) -> str:
    """The `user:password` that this checkout's Prefect server asks for; made at the first call.

    Without it any page in a browser, and any user of this machine, could make the worker run a command. Only the owner
    of the file can read it.
    """
    file = root / LOGIN
    with suppress(OSError, UnicodeDecodeError):
        known = file.read_text(encoding="ascii").strip()
        file.chmod(0o600)  # a copy of the checkout may have loosened it
        if len(known) > len("densitywatch:"):
            return known
    made = f"densitywatch:{secrets.token_urlsafe(24)}"
    write_private(file, made + "\n")
    return made


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, also while it is being written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    beside.replace(path)


def answers(address: str, seconds: float = 2.0) -> bool:
    """Whether an HTTP GET of `address`, on this machine, returns status 200; no proxy is used."""
    try:
        with build_opener(ProxyHandler({})).open(address, timeout=seconds) as response:
            return bool(response.status == 200)
    except (URLError, OSError, ValueError):
        return False
