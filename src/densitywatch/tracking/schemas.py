"""The schemas of Prefect and MLflow in the database of DATABASE_URL: made, kept to one checkout, moved with it.

The database belongs to one checkout: two would point Prefect's deployments into each other's folders. A comment on the
schema of MLflow names the folder and the machine.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from densitywatch.errors import DensitywatchError
from densitywatch.tracking.addresses import COLUMNS
from densitywatch.tracking.database import MLFLOW, PREFECT, VARIABLE, address, shown
from densitywatch.tracking.store import check_driver

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Connection

SECONDS = 5
_LOCK = 0x64656E73
"""The number of the advisory lock under which schemas are made: several processes may come at once."""


def prepare(root: Path) -> None:
    """Make the database and its schemas where they are missing, and note the checkout that they belong to.

    After the checkout was moved, the addresses in MLflow's tables follow. Without DATABASE_URL it does nothing. Raises
    DensitywatchError when the database does not answer, refuses the user, holds another program's tables or belongs to
    another checkout.
    """
    url = address()
    if url is None:
        return
    with connected(url, make=True) as connection:
        connection.exec_driver_sql("SELECT pg_advisory_lock(%s)", (_LOCK,))  # until the connection is closed
        _refuse_foreign_tables(url, connection)
        owner = _owner(connection)
        here = {"folder": str(root.resolve()), "host": socket.gethostname()}
        if owner is not None and owner != here and not _moved(owner, here):
            raise DensitywatchError(
                f"{shown(url)} belongs to the checkout {owner['folder']} on {owner['host']}; give this one a database"
                f" of its own, or, if that one is gone, run in psql: COMMENT ON SCHEMA {MLFLOW} IS NULL"
            )
        for schema in (PREFECT, MLFLOW):
            # asked first: IF NOT EXISTS wants the right to make one even where it is there
            if connection.exec_driver_sql("SELECT to_regnamespace(%s)", (schema,)).scalar() is None:
                connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
        connection.exec_driver_sql(
            "CREATE EXTENSION IF NOT EXISTS pg_trgm WITH SCHEMA public"
        )  # Prefect searches by it
        if owner != here:
            if owner is not None:
                follow_move(connection, Path(owner["folder"]), root)
            connection.exec_driver_sql(f"COMMENT ON SCHEMA {MLFLOW} IS %s", (f"densitywatch {json.dumps(here)}",))


def follow_move(connection: Connection, old: Path, root: Path) -> None:
    """Make the addresses in MLflow's tables point into `root` where they point into `old`."""
    known = set(
        connection.exec_driver_sql(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = %s", (MLFLOW,)
        )
        .tuples()
        .all()
    )
    new = root.resolve()
    for table, column in COLUMNS:
        for before, after in ((old.as_uri(), new.as_uri()), (str(old), str(new))):
            if (table, column) in known:
                connection.exec_driver_sql(
                    f"UPDATE {MLFLOW}.{table} SET {column} = %s || substr({column}, %s)"  # noqa: S608 fixed names
                    f" WHERE starts_with({column}, %s)",
                    (after, len(before) + 1, f"{before}/"),
                )


@contextmanager
def connected(url: URL, *, make: bool = False) -> Iterator[Connection]:
    """A connection in which every statement takes effect at once. `make`: make the database if it is missing.

    Raises DensitywatchError, in one sentence without the password, for whatever the database refuses.
    """
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    check_driver(url.render_as_string(hide_password=True))

    def connect(to: URL) -> Connection:
        engine = create_engine(
            to, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": SECONDS}
        )
        return engine.connect()

    try:
        try:
            connection = connect(url)
        except SQLAlchemyError:
            if not make or not _make(url, connect):
                raise
            connection = connect(url)
        with connection:
            yield connection
    except SQLAlchemyError as error:
        reason = " ".join(str(getattr(error, "orig", error)).split()).rpartition("FATAL:")[2].strip()[:200]
        if url.password:
            reason = reason.replace(str(url.password), "***")
        raise DensitywatchError(
            f"{shown(url)} did not do what was asked ({reason}); start it, or correct {VARIABLE}"
        ) from None


def _make(url: URL, connect: Callable[[URL], Connection]) -> bool:
    """Make the database if its server answers and does not have it; returns whether it did."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with connect(url.set(database="postgres")) as server:
            if server.exec_driver_sql("SELECT 1 FROM pg_database WHERE datname = %s", (url.database,)).first():
                return False
            server.exec_driver_sql(f'CREATE DATABASE "{url.database}"')  # _read lets only plain names through
            return True
    except SQLAlchemyError as error:
        if "permission denied" in str(error):
            raise
        return False


def _refuse_foreign_tables(url: URL, connection: Connection) -> None:
    """Raise where schema public holds tables: DATABASE_URL is the name that many programs use."""
    found = connection.exec_driver_sql(
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = to_regnamespace('public')"
        " AND NOT EXISTS (SELECT 1 FROM pg_depend WHERE objid = pg_class.oid AND deptype = 'e') ORDER BY 1 LIMIT 1"
    ).scalar()
    if found is not None:
        raise DensitywatchError(
            f"{shown(url)} holds tables of another program ({found}); name a database of this project's own there,"
            " which is made if it is missing"
        )


def _owner(connection: Connection) -> dict[str, str] | None:
    """Folder and host of the checkout that the database belongs to; None where there is no such note."""
    noted = connection.exec_driver_sql(
        "SELECT obj_description(to_regnamespace(%s)::oid, 'pg_namespace')", (MLFLOW,)
    ).scalar()
    if not isinstance(noted, str) or not noted.startswith("densitywatch {"):
        return None
    found = json.loads(noted.removeprefix("densitywatch "))
    return {"folder": str(found["folder"]), "host": str(found["host"])}


def _moved(owner: dict[str, str], here: dict[str, str]) -> bool:
    """Whether this checkout is the noted one in another place: the old folder is gone, or a container was made anew."""
    if owner["folder"] == here["folder"]:
        return True
    return owner["host"] == here["host"] and not (Path(owner["folder"]) / "params.yaml").is_file()
