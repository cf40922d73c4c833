"""The database of DATABASE_URL as one file, by PostgreSQL's own pg_dump, and back by pg_restore."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from densitywatch.errors import DensitywatchError
from densitywatch.tracking import database, schemas

FILE = "databases.dump"
SECONDS = 3600.0
"""How long a dump or its way back may take: tables of some GB take minutes. A server that stops answering in the middle
would hold the run lock for ever."""


def dump(to: Path) -> None:
    """Write both schemas as of one moment. Raises DensitywatchError with what pg_dump says."""
    chosen = [f"--schema={schema}" for schema in (database.PREFECT, database.MLFLOW)]
    _run("pg_dump", "--format=custom", *chosen, f"--file={to}")


def check_empty(root: Path) -> None:
    """Raise DensitywatchError where one of the schemas has a table, or the database belongs to another checkout."""
    url = database.address()
    assert url is not None
    schemas.prepare(root)
    with schemas.connected(url) as connection:
        for schema in (database.PREFECT, database.MLFLOW):
            tables = connection.exec_driver_sql(
                "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relnamespace = to_regnamespace(%s)", (schema,)
            ).scalar()
            if tables:
                raise DensitywatchError(
                    f"{database.shown(url)} has {tables} tables in schema {schema}; restore overwrites nothing: name"
                    " another database, which is made if it is missing"
                )


def restore(root: Path, file: Path, moved_from: Path) -> None:
    """Fill the empty schemas in one transaction, and point MLflow's addresses from the old folder into `root`."""
    url = database.address()
    assert url is not None
    with schemas.connected(url) as connection:
        for schema in (database.PREFECT, database.MLFLOW):
            connection.exec_driver_sql(f"DROP SCHEMA {schema}")  # refused by PostgreSQL where it is not empty
    _run("pg_restore", "--single-transaction", "--exit-on-error", "--no-comments", str(file))
    with schemas.connected(url) as connection:
        schemas.follow_move(connection, moved_from, root)
    schemas.prepare(root)


def _run(program: str, *arguments: str) -> None:
    from sqlalchemy.engine import URL

    url = database.address()
    assert url is not None
    # the password is a variable: a command line can be read by every user of the machine
    secret = {} if url.password is None else {"PGPASSWORD": str(url.password)}
    to = URL.create(url.drivername, url.username, None, url.host, url.port, url.database, url.query).render_as_string()
    try:
        done = subprocess.run(  # noqa: S603
            [_find(program), "--no-owner", "--no-privileges", "--no-password", f"--dbname={to}", *arguments],
            env={**os.environ, "PGCONNECT_TIMEOUT": str(schemas.SECONDS), **secret},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DensitywatchError(
            f"{database.shown(url)}: {program} was not done within {SECONDS / 60:.0f} minutes, so it was ended; nothing"
            " was written"
        ) from None
    if done.returncode != 0:
        said = " ".join(done.stderr.split())[-300:]
        raise DensitywatchError(f"{database.shown(url)}: {said}; nothing was written")


def _find(program: str) -> str:
    """The program on the path, or Debian's newest, which is not on it."""
    found = sorted(
        Path("/usr/lib/postgresql").glob(f"*/bin/{program}"), key=lambda path: float(path.parent.parent.name)
    )
    where = shutil.which(program) if not found else str(found[-1])
    if where is None:
        raise DensitywatchError(
            f"{program} is not there; install PostgreSQL's programs, of the server's version or newer"
            " (sudo apt-get install postgresql-client)"
        )
    return where
