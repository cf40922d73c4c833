"""What the addresses in a sqlite store mean after its checkout was moved, copied or restored. Needs no MLflow.

MLflow writes absolute paths into its tables. The files are inside the checkout that the database belongs to. So a
checkout that was moved rewrites the part of the paths that changed, once, before anything uses an old path
(docs/decisions/0016-the-registry-belongs-to-its-checkout.md).
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from densitywatch.errors import DensitywatchError
from densitywatch.files import content_digest
from densitywatch.progress import say
from densitywatch.tracking.store import REACH_SECONDS, sqlite_path

ARTIFACTS = "mlartifacts"
"""The folder of a checkout that holds the files of its runs and versions."""
PACKED = "model"
"""The folder among a version's artifacts that holds what `load_model` reads."""
CONTENT = "content_sha256"
COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def follow_move(uri: str, root: Path | None = None) -> None:
    """Make the addresses of a sqlite store point into the checkout that it is in now. Other stores are left alone.

    `root` is the project's folder; without it the database's own place decides. Several processes may call it
    at once. Raises DensitywatchError when the database cannot be written.
    """
    database = sqlite_path(uri)
    if database is None or not database.is_file():
        return
    database = database.resolve()
    try:
        with closing(sqlite3.connect(database, timeout=REACH_SECONDS)) as store:
            if not _moves(store, database, root):
                return
            with store:  # one transaction: a killed process leaves all old addresses or all new ones
                store.execute("BEGIN IMMEDIATE")
                # another process may have rewritten them meanwhile; where a checkout was moved to below its old place,
                # a second time would lead further down
                moves = _moves(store, database, root)
                for old, new in moves:
                    _rewrite(store, old, new)
        for old, new in moves:
            say(f"MLflow's store was written in {old}; its addresses point into {new} now")
    except sqlite3.Error as error:
        raise DensitywatchError(
            f"{database}: its addresses could not be read, or not rewritten after a move ({error});"
            " stop what else uses it and run the same command again"
        ) from None


def local_path(address: str) -> Path | None:
    """The path of a `file:` address or a plain path; None for any other address."""
    if address.startswith("/"):
        return Path(address)
    return Path(unquote(urlsplit(address).path)) if address.startswith("file:/") else None


def lost_champions(uri: str) -> list[str]:
    """The registered names whose champion's files are gone or altered; empty for stores other than sqlite.

    The tables are read directly: MLflow takes seconds to import, and `make run` with nothing to do takes one second.
    """
    database = sqlite_path(uri)
    if database is None or not database.is_file():
        return []
    query = (
        "SELECT alias.name, version.storage_location, tag.value FROM registered_model_aliases AS alias"
        " LEFT JOIN model_versions AS version ON version.name = alias.name AND version.version = alias.version"
        " LEFT JOIN model_version_tags AS tag ON tag.name = alias.name AND tag.version = alias.version AND tag.key = ?"
        " WHERE alias.alias = 'champion'"
    )
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", REACH_SECONDS, uri=True)) as store:
        if not _columns(store, "registered_model_aliases"):
            return []
        champions = store.execute(query, (CONTENT,)).fetchall()
    return sorted(name for name, address, content in champions if content and not _is_whole(address, content))


def _is_whole(address: str | None, content: str) -> bool:
    folder = local_path(address or "")
    if folder is None:
        return address is not None  # a remote store: checked when the version is used
    folder = folder / "artifacts" / PACKED
    return folder.is_dir() and content_digest(folder) == content


def _moves(store: sqlite3.Connection, database: Path, root: Path | None) -> list[tuple[Path, Path]]:
    """The checkouts that moved, and where each is now."""
    return [(old, new) for old in _homes(store) if (new := _home(database, old, root)) is not None]


def _homes(store: sqlite3.Connection) -> list[Path]:
    """The checkouts in which this project's experiments were made."""
    if not _columns(store, "experiments"):
        return []
    found = {
        local_path(address) for (address,) in store.execute("SELECT artifact_location FROM experiments") if address
    }
    return sorted(path.parent for path in found if path is not None and path.name == ARTIFACTS)


def _home(database: Path, old: Path, root: Path | None) -> Path | None:
    """The checkout that took the place of `old`; None where nothing moved, or where that is unclear."""
    given = None if root is None else root.resolve()
    if given is not None and database.is_relative_to(given):
        new = given
    else:
        near = [folder for folder in database.parents if (folder / ARTIFACTS).is_dir()]
        new = near[0] if near else given or old
        if database.is_relative_to(old) and old.is_relative_to(new):
            return None  # a folder above has a folder of that name by chance
        if not database.is_relative_to(new) and (old / ARTIFACTS).is_dir():
            return None  # a database that several checkouts share
    moved = new != old and ((new / ARTIFACTS).is_dir() or not (old / ARTIFACTS).is_dir())
    return new if moved else None


def _rewrite(store: sqlite3.Connection, old: Path, new: Path) -> None:
    """Replace `old` by `new` at the beginning of every address."""
    for table, column in COLUMNS:
        if column not in _columns(store, table):
            continue
        for before, after in ((old.as_uri(), new.as_uri()), (str(old), str(new))):
            store.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",  # noqa: S608 fixed names
                (after, len(before) + 1, len(before) + 1, f"{before}/"),
            )


def _columns(store: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in store.execute(f"PRAGMA table_info({table})")}
