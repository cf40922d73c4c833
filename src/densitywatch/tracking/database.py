"""DATABASE_URL: the address of one PostgreSQL database for Prefect's server and MLflow's, a schema for each.

Both name a table `alembic_version`, so they cannot share a schema. SQLAlchemy is imported where the variable is set.
"""

from __future__ import annotations

import os
import re
from functools import cache
from typing import TYPE_CHECKING

from densitywatch.errors import ParamsError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

VARIABLE = "DATABASE_URL"
PREFECT, MLFLOW = "prefect", "mlflow"
SCHEMES = ("postgresql", "postgres", "postgresql+psycopg2")


def address() -> URL | None:
    """The database that DATABASE_URL names; None where it is not set.

    Raises ParamsError when it is no address of PostgreSQL. No message holds the password.
    """
    given = os.environ.get(VARIABLE)
    return _read(given) if given else None


@cache
def _read(given: str) -> URL:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    scheme, _, rest = given.strip().partition("://")
    if scheme not in SCHEMES:
        raise ParamsError(
            f"{VARIABLE}: both servers know PostgreSQL alone; give postgresql://user:password@host/database,"
            " or unset it for SQLite"
        )
    if re.search(r"[@/?#\s]", rest.rpartition("@")[0]):
        raise ParamsError(
            f"{VARIABLE}: user or password has a character that an address cannot hold; write @ as %40, / as %2F,"
            " ? as %3F, # as %23"
        )
    try:
        url = make_url(f"postgresql://{rest}")
    except (ArgumentError, ValueError):
        raise ParamsError(f"{VARIABLE}: cannot be read; give postgresql://user:password@host/database") from None
    if not url.host or not url.database or not re.fullmatch(r"[\w.-]+", url.database):
        raise ParamsError(f"{VARIABLE}: names no host or no database; give postgresql://user:password@host/database")
    if set(url.query) - {"sslmode"}:
        raise ParamsError(
            f"{VARIABLE}: of what can follow the ?, only sslmode is known to both servers; set the rest by libpq's"
            " variables, such as PGSSLROOTCERT"
        )
    return url


def shown(url: URL) -> str:
    """The database for a message, without the password."""
    return f"the database {url.host}:{url.port or 5432}/{url.database} of {VARIABLE}"


def mlflow_uri() -> str | None:
    """The address of MLflow's tables, with the password; None without DATABASE_URL."""
    url = address()
    if url is None:
        return None
    return _whole(url.update_query_dict({"options": f"-csearch_path={MLFLOW}"}))


def prefect_variables() -> dict[str, str]:
    """What Prefect's server needs to keep its tables there; empty without DATABASE_URL."""
    url = address()
    if url is None:
        return {}
    # the driver of Prefect's server is another one, with another name for sslmode
    mode = url.query.get("sslmode")
    inside = url.set(drivername="postgresql+asyncpg", query={} if mode is None else {"ssl": mode})
    return {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": _whole(inside),
        "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_SEARCH_PATH": f"{PREFECT}, public",
    }


def _whole(url: URL) -> str:
    """The address with its password. SQLAlchemy leaves blanks in it, at which a message would be cut in two."""
    return url.render_as_string(hide_password=False).replace(" ", "%20")
