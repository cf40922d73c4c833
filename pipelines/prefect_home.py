"""Where Prefect keeps its files and which server a flow talks to; everything stays in the project's `var/`."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener, urlopen

from densitywatch import environment
from densitywatch.errors import DensitywatchError
from densitywatch.tracking.store import plain

PREFECT_PORT, MLFLOW_PORT, REPORTS_PORT = "4200", "5000", "4400"
LOGIN = Path("var") / "prefect.login"
HEADER = "densitywatch-checkout"
"""The header of every answer of this project's servers; its value is `mark`."""


def settle(root: Path) -> str | None:
    """Set Prefect's variables where the user has not; call it before prefect is imported.

    Returns the address of the server that flows will talk to: the user's own (PREFECT_API_URL), or the one that
    `make up` started, if it answers. None means that there is none yet.
    """
    environment.settle(os.environ)
    environment.read_file(root)
    own_folder(root)
    for name, value in {
        "PREFECT_HOME": str(root.resolve() / "var" / "prefect"),
        # a stage that waits for a device asks again every second or two; the default is up to half a minute
        "PREFECT_SERVER_CONCURRENCY_MAXIMUM_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
        # a run that waits for another of its deployment asks again after ten seconds; the default is thirty
        "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "10",
        # the slots of a dead flow are freed even when the server was restarted in between
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    }.items():
        os.environ.setdefault(name, value)
    address = prefect_address(root)
    if "PREFECT_API_URL" not in os.environ and address is not None and is_own(address, root):
        os.environ["PREFECT_API_URL"] = address
    team = environment.login()
    if address is not None and os.environ.get("PREFECT_API_URL") == address:
        os.environ["PREFECT_API_AUTH_STRING"] = login(root)
    elif team is not None:  # the server is on another machine of the team
        os.environ.setdefault("PREFECT_API_AUTH_STRING", team)
    if "PREFECT_API_URL" in os.environ:
        # a server whose database starts anew answers 500: a run waits up to a minute for it, in place of dying untold
        os.environ.setdefault("PREFECT_CLIENT_RETRY_EXTRA_CODES", "500")
    return os.environ.get("PREFECT_API_URL")


def own_folder(root: Path) -> None:
    """Make the folder of Prefect's database, which no other user may read: it holds the secrets of blocks, and the key.

    Prefect makes the folder with the mode that the user's umask gives, and not the folders above it.
    """
    folder = root / "var" / "prefect"
    folder.mkdir(parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)


def prefect_address(root: Path) -> str | None:
    """The API address that `make up` wrote into var/, whether it still answers or not."""
    note = root / "var" / "prefect.address"
    return note.read_text(encoding="utf-8").strip() if note.is_file() else None


def login(root: Path) -> str:
    """The `user:password` that this checkout's Prefect server asks for: the team's, or one made at the first call.

    Without it any page in a browser, and any user of this machine, could make the worker run a command. Only the owner
    of the file can read it.
    """
    team = environment.login()
    if team is not None:
        return team
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


def mark(root: Path) -> str:
    """What this checkout's servers call themselves: the beginning of a digest of its folder."""
    return hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]


def is_own(address: str, root: Path) -> bool:
    """Whether the server at this address of an API answers and is this checkout's, not another one on its port."""
    with suppress(URLError, OSError, ValueError), _get(f"{address}/health", 2.0) as answer:
        return bool(answer.status == 200 and answer.headers.get(HEADER) == mark(root))
    return False


def check_server(address: str) -> None:
    """Raise DensitywatchError, in one sentence, when a flow cannot use the Prefect server at this address.

    Prefect Cloud, and a server whose certificate only Prefect's own settings can check, are left to Prefect.
    """
    if os.environ.get("PREFECT_API_KEY"):
        return
    shown, known = plain(address), os.environ.get("PREFECT_API_AUTH_STRING")
    login = {"Authorization": f"Basic {base64.b64encode(known.encode()).decode()}"} if known else {}
    try:
        with urlopen(Request(f"{address.rstrip('/')}/admin/version", headers=login), timeout=10.0) as answer:  # noqa: S310
            if "json" in (answer.headers.get("Content-Type") or ""):
                return
    except HTTPError as error:
        error.close()
        if error.code in (401, 403):
            raise DensitywatchError(
                f"Prefect's server {shown} refuses the login; set {environment.LOGIN}=name:password, or"
                " PREFECT_API_AUTH_STRING, to that of the server"
            ) from None
    except (URLError, OSError, ValueError) as error:
        if isinstance(getattr(error, "reason", None), ssl.SSLError):
            return
        raise DensitywatchError(
            f"Prefect's server {shown} does not answer; run `make up` where it is, or unset PREFECT_API_URL to run"
            " without it"
        ) from None
    raise DensitywatchError(
        f"{shown} is not a Prefect server's API; correct PREFECT_API_URL (http://HOST:{PREFECT_PORT}/api) or unset it"
    )


def answers(address: str, seconds: float = 2.0) -> bool:
    """Whether an HTTP GET of `address`, on this machine, returns status 200; no proxy is used."""
    try:
        with _get(address, seconds) as response:
            return bool(response.status == 200)
    except (URLError, OSError, ValueError):
        return False


def _get(address: str, seconds: float) -> Any:
    """The answer, whatever its status; close it."""
    try:
        return build_opener(ProxyHandler({})).open(address, timeout=seconds)
    except HTTPError as answer:
        return answer
