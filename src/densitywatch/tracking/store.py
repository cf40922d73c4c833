"""Where MLflow's store is, whether it answers, and a lock for what one process at a time may do. Needs no MLflow.

What only one kind of store needs (requests, SQLAlchemy) is imported where it is used: sqlite, the default, needs
neither.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from densitywatch.environment import ENV_FILE, LOGIN
from densitywatch.errors import DensitywatchError, ParamsError
from densitywatch.params import Params
from densitywatch.tracking import database as server

REACH_SECONDS = 5.0
SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks", "databricks-uc")
FLOW_RUN, REPORT = "prefect_flow_run", "report"
"""Tags with the addresses of the flow run in Prefect's page and of a batch's report."""
FLOW_RUN_VARIABLE = "DENSITYWATCH_FLOW_RUN"
"""The variable by which a flow tells its stages the address of its run."""
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
"""Databases that are reached over the network directly, without MLflow's server."""


def tracking_uri(params: Params, root: Path) -> str:
    """The address of runs and registry: MLFLOW_TRACKING_URI, or DATABASE_URL, or else params.mlflow.tracking_uri.

    A relative sqlite path counts from `root`. Raises ParamsError for an address that is no MLflow store.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI") or server.mlflow_uri() or params.mlflow.tracking_uri
    scheme = given.partition(":")[0].partition("+")[0]
    if scheme not in SCHEMES:
        raise ParamsError(
            f"mlflow.tracking_uri: '{plain(given)}' is no store that MLflow serves; "
            "use sqlite:///mlflow.db or a server's address such as http://127.0.0.1:5000"
        )
    path = sqlite_path(given)
    if path is None:
        return given
    _, mark, options = given.partition("?")
    return f"sqlite:///{root.resolve() / path}{mark}{options}"


def sqlite_path(uri: str) -> Path | None:
    """The database file of a sqlite address; None for servers and for databases in memory."""
    path = uri.removeprefix("sqlite:///").partition("?")[0]
    return Path(path) if uri.startswith("sqlite:///") and path not in ("", ":memory:") else None


def is_database(uri: str) -> bool:
    """Whether this process writes the database itself, without MLflow's server."""
    return uri.partition(":")[0].partition("+")[0] in ("sqlite", *PORTS)


def plain(uri: str) -> str:
    """The address, or a text with addresses, without passwords, for messages."""
    # up to the last @, since a password may hold one; a port and a path with an @ are no password
    shown = re.sub(r"(?<=://)(?:[^/\s]*|[^/:@\s]*:(?!\d+/)\S*)@", "", uri)
    return re.sub(r"(?i)\b(password=)[^&\s]*|\?options=\S*", r"\1", shown)


def is_own(uri: str) -> bool:
    """Whether the store is this checkout's, so that its MLflow server is for `make up` to start."""
    return sqlite_path(uri) is not None or (uri == server.mlflow_uri())


@contextmanager
def store_lock(uri: str, root: Path, what: str, *, waiting: Callable[[], object] | None = None) -> Iterator[None]:
    """Let one process at a time on this machine do `what` with this store; the lock ends with its process.

    `waiting` is called once where another process holds the lock; what it raises ends the wait.

    Raises DensitywatchError when the lock's file cannot be written.
    """
    database = sqlite_path(uri)
    if database is None:
        folder = root / "var"
        path = folder / f"mlflow-{hashlib.sha256(uri.encode()).hexdigest()[:12]}.{what}.lock"
    else:
        folder, path = database.parent, database.with_name(f"{database.name}.{what}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise DensitywatchError(
            f"{path}: cannot be written ({error.strerror}); MLflow's store needs a folder that can be written"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_reachable(uri: str, *, create: bool = True) -> None:
    """Raise DensitywatchError at once where MLflow would keep trying for minutes.

    A sqlite file that does not exist is made, unless `create` is False.
    """
    address = urlsplit(uri)
    scheme, database = address.scheme.partition("+")[0], sqlite_path(uri)
    advice = "start it with `make up`, or set mlflow.tracking_uri or MLFLOW_TRACKING_URI to one that is there"
    try:
        if database is not None:
            mode = "rwc" if create else "ro"
            connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode={mode}", timeout=REACH_SECONDS, uri=True)
            connection.execute("PRAGMA schema_version")
            connection.close()
        elif scheme in ("http", "https"):
            import requests  # the HTTP client of MLflow, so that proxies work the same

            answer = requests.get(uri.rstrip("/") + "/version", timeout=REACH_SECONDS, auth=_login())
            if answer.status_code in (401, 403):
                raise DensitywatchError(
                    f"MLflow's store {plain(uri)} refuses the login; set {LOGIN}=name:password to that of its server,"
                    f" in {ENV_FILE} or in the environment"
                )
        elif scheme in PORTS:
            check_driver(uri)
            socket.create_connection(
                (address.hostname or "127.0.0.1", address.port or PORTS[scheme]), REACH_SECONDS
            ).close()
            _log_in(uri)
    except (OSError, sqlite3.Error) as error:
        kind = "no answer" if not isinstance(error, sqlite3.Error) else str(error)
        raise DensitywatchError(f"MLflow's store {plain(uri)} cannot be opened ({kind}); {advice}") from None


def _login() -> tuple[str, str] | None:
    """What MLflow's client sends to a server; None lets requests look into the address and ~/.netrc."""
    name = os.environ.get("MLFLOW_TRACKING_USERNAME")
    return (name, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if name else None


def _log_in(uri: str) -> None:
    """Log in once. Where a database refuses the user or has no such name, MLflow would retry for 90 seconds."""
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    patience = {} if uri.startswith("mssql") else {"connect_timeout": int(REACH_SECONDS)}
    try:
        create_engine(uri, poolclass=NullPool, connect_args=patience).connect().close()
    except SQLAlchemyError as error:
        said = " ".join(plain(str(getattr(error, "orig", error))).split())[:200]
        advice = "correct " + (
            server.VARIABLE if uri == server.mlflow_uri() else "mlflow.tracking_uri or MLFLOW_TRACKING_URI"
        )
        raise DensitywatchError(f"MLflow's store {plain(uri)} cannot be opened ({said}); {advice}") from None


def check_driver(uri: str) -> None:
    """Raise DensitywatchError that names what to install where Python lacks the database's driver."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        make_url(uri).get_dialect().import_dbapi()
    except ImportError as error:
        extra = "'.[postgres]'" if error.name == "psycopg2" else f"the package that has the module {error.name}"
        install = f"install it: .venv/bin/python -m pip install {'-e ' if error.name == 'psycopg2' else ''}{extra}"
        raise DensitywatchError(f"MLflow's store {plain(uri)} needs a driver that is not there; {install}") from None
    except ArgumentError as error:  # NoSuchModuleError is one
        raise ParamsError(f"mlflow.tracking_uri: '{plain(uri)}' is no address of a database ({error})") from None
