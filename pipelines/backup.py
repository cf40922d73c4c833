"""`make backup` and `make restore`: everything that git does not keep, in one folder, while the servers run.

    python -m pipelines.backup backup [TO]      by default TO is backups/<time>
    python -m pipelines.backup restore FROM

A backup holds the databases of Prefect and MLflow, the files of runs and versions, the default DVC remote where it is a
folder, the results, and what `make up` has noted. Databases are copied first: what a database names is there by then.
backup.json lists every file with its digest. Both verbs write next to the place and rename at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densitywatch import __version__, environment
from densitywatch.data.inputs.source import is_local, local_path
from densitywatch.errors import DensitywatchError, ParamsError
from densitywatch.files import read_json
from densitywatch.params import Params, load_params
from densitywatch.progress import tell
from densitywatch.tracking import database
from densitywatch.tracking.addresses import ARTIFACTS, follow_move
from densitywatch.tracking.store import plain, sqlite_path, store_lock, tracking_uri
from pipelines import dvc_commands, postgres_dump, prefect_home, run_lock

NOTE = "backup.json"
FORMAT = 1
PREFECT_DB = Path("var") / "prefect" / "prefect.db"
FOR_READING = ("params.yaml", "dvc.yaml", "dvc.lock", "data/accepted.dvc")
"""Files of git that are copied to compare with, and not restored. A retraining writes the last two uncommitted."""
NOTED = ("deployed.json", "fresh.json", "run.json")
"""What var/ holds that a new checkout cannot make again: what a person set in Prefect's page would be set back."""
WORKING = (".partial", ".lock")
"""Names with these are work in progress of some process."""


ROUNDS = 20
"""How often what has changed meanwhile is copied again."""


@dataclass(frozen=True)
class Part:
    """A file or folder of the checkout, and its name in a backup."""

    name: str
    place: Path


def backup(root: Path, to: Path | None = None) -> Path:
    """Write a backup and return its folder. Servers and runs go on meanwhile.

    Raises DensitywatchError when the folder holds something or a database cannot be copied.
    """
    params = load_params(root / "params.yaml")
    target = root / (to or Path("backups") / time.strftime("%Y-%m-%dT%H-%M-%S"))
    _refuse_full(target, "a backup goes into a new folder")
    inside = [part.place for part in _parts(root, params) if target.resolve().is_relative_to(part.place.resolve())]
    if inside:
        raise ParamsError(f"{target}: lies in {inside[0]}, which is part of the backup; choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.partial-{os.getpid()}")
    beside.mkdir(mode=0o700)  # Prefect's database holds the secrets of its blocks
    try:
        kind, left_out = _copy_databases(root, params, beside)
        for part in _parts(root, params):
            if part.place.exists():
                _copy(part.place, beside / part.name)
        for name in FOR_READING:
            if (root / name).is_file():
                _copy(root / name, beside / "project" / f"{name}.kept")  # no dvc.yaml for DVC to find
        note: dict[str, Any] = {
            "format": FORMAT,
            "densitywatch": __version__,
            "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "folder": str(root.resolve()),
            "commit": _commit(root),
            "database": kind,
            "left_out": [*left_out, *_elsewhere(root, params)],
            "files": {str(path.relative_to(beside)): _digest(path) for path in _files(beside)},
        }
        (beside / NOTE).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
        if target.is_dir():
            target.rmdir()
        beside.rename(target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    size = sum(path.stat().st_size for path in _files(target))
    tell(f"backup of {len(note['files'])} files, {size / 1e6:.0f} MB: {target}")
    for one in note["left_out"]:
        tell(f"not in it: {one}")
    return target


def restore(root: Path, source: Path) -> None:
    """Put a backup into this checkout, whose own data, databases and results must be missing or empty.

    What is there already, byte for byte, is left as it is. Raises DensitywatchError when something else is there, or
    the backup is damaged; then nothing has changed.
    """
    params = load_params(root / "params.yaml")
    note = _read_note(source)
    _verify(source, note)
    kind = "sqlite" if database.address() is None else "postgresql"
    if kind != note["database"]:
        change = f"set {database.VARIABLE}" if kind == "sqlite" else f"unset {database.VARIABLE}"
        raise DensitywatchError(
            f"{source}: its databases are of the kind {note['database']}; {change} and restore again"
        )
    with run_lock.one_run_at_a_time(root):
        wanted = [
            part for part in [*_parts(root, params), *_sqlite_parts(root, params)] if (source / part.name).exists()
        ]
        missing = [part for part in wanted if not _is_there(part, source, note["files"])]
        for part in missing:
            _refuse_full(part.place, "restore overwrites nothing; restore into a fresh clone")
        if kind == "postgresql":
            postgres_dump.check_empty(root)
        with ExitStack() as stack:
            copies = []
            prefect_home.own_folder(root)  # before the database is in it
            for part in missing:
                part.place.parent.mkdir(parents=True, exist_ok=True)
                beside = part.place.with_name(f".{part.place.name}.partial-{os.getpid()}")
                stack.callback(_remove, beside)
                _copy(source / part.name, beside)
                copies.append((beside, part.place))
            if kind == "postgresql":
                postgres_dump.restore(root, source / postgres_dump.FILE, moved_from=Path(note["folder"]))
            for beside, place in copies:
                if place.is_dir():
                    place.rmdir()
                beside.rename(place)
        uri = tracking_uri(params, root)
        with store_lock(uri, root, "open"):
            follow_move(uri, root)
    tell(f"restored what was backed up at {note['made']}, {len(note['files'])} files; `make up` starts the servers")
    for one in note["left_out"]:
        tell(f"not in it: {one}")
    for name in FOR_READING:
        kept = source / "project" / f"{name}.kept"
        if kept.is_file() and (not (root / name).is_file() or (root / name).read_bytes() != kept.read_bytes()):
            tell(f"{name} here is not that of the backup; compare with {kept} (commit {note['commit'] or 'unknown'})")


def _parts(root: Path, params: Params) -> list[Part]:
    """What is copied as files, apart from the databases."""
    remote = dvc_commands.default_remote(root)
    found = [Part("mlartifacts", root / ARTIFACTS)]
    if remote is not None and "://" not in remote:
        found.append(Part("dvc-remote", Path(remote)))
    if is_local(params.inbox.results):
        found.append(Part("results", root / local_path(params.inbox.results)))
    return [*found, *(Part(f"var/{name}", root / "var" / name) for name in NOTED)]


def _sqlite_parts(root: Path, params: Params) -> list[Part]:
    """The databases where they are files: Prefect's, and MLflow's unless it is on a server."""
    if database.address() is not None:
        return []
    store = sqlite_path(tracking_uri(params, root))
    return [Part("prefect.db", root / PREFECT_DB), *([Part("mlflow.db", store)] if store is not None else [])]


def _copy_databases(root: Path, params: Params, to: Path) -> tuple[str, list[str]]:
    """Copy both databases; returns their kind, and what is not this project's to copy."""
    if database.address() is not None:
        postgres_dump.dump(to / postgres_dump.FILE)
        return "postgresql", []
    for part in _sqlite_parts(root, params):
        if part.place.is_file():
            _copy_sqlite(part.place, to / part.name)
    return "sqlite", []


def _elsewhere(root: Path, params: Params) -> list[str]:
    """What a backup lacks because it is kept elsewhere."""
    found = []
    uri, remote = tracking_uri(params, root), dvc_commands.default_remote(root)
    if sqlite_path(uri) is None and uri != database.mlflow_uri():
        found.append(f"MLflow's store {plain(uri)}, which has a server of its own")
    if remote is not None and "://" in remote:
        found.append(f"the DVC remote {plain(remote)}")
    if not is_local(params.inbox.results):
        found.append(f"the results in {plain(params.inbox.results)}")
    return found


def _copy_sqlite(source: Path, target: Path) -> None:
    """One consistent copy of a database that other processes write (SQLite's online backup)."""
    try:
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", timeout=30, uri=True)) as live,
            closing(sqlite3.connect(target)) as copy,
        ):
            live.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, without a log next to it
            ((said,),) = copy.execute("PRAGMA quick_check(1)").fetchall()
            if said != "ok":
                raise sqlite3.DatabaseError(said)
    except sqlite3.Error as error:
        raise DensitywatchError(f"{source}: the database cannot be copied ({error}); nothing was written") from None


def _copy(source: Path, target: Path) -> None:
    """Copy a file or a folder, without links and without what other processes are still writing.

    What is replaced meanwhile, such as the results of a batch that is scored again, is copied again.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_file():
        shutil.copy2(source, target)
        return
    target.mkdir(exist_ok=True)
    done: dict[str, tuple[int, ...]] = {}
    failure: Exception | None = None
    for _ in range(ROUNDS):
        now = _present(source)
        if now == done:
            return
        for name in done.keys() | now.keys():
            if done.get(name) == now.get(name):
                continue
            _remove(target / name)
            done.pop(name, None)
            try:
                if name not in now:
                    continue
                if (source / name).is_dir():
                    shutil.copytree(source / name, target / name, ignore=_ignored)
                else:
                    shutil.copy2(source / name, target / name)
                done[name] = now[name]
            except (FileNotFoundError, shutil.Error) as error:  # it was replaced this very moment
                failure = error
    raise DensitywatchError(f"{source}: changes faster than it can be copied ({failure or 'again'}); run it again")


def _present(folder: Path) -> dict[str, tuple[int, ...]]:
    """What is in the folder now -> what tells whether it is the same later: another folder, or a changed file."""
    found: dict[str, tuple[int, ...]] = {}
    names = [path.name for path in folder.iterdir()]
    for name in sorted(set(names) - _ignored(str(folder), names)):
        with suppress(FileNotFoundError):
            seen = (folder / name).stat()
            found[name] = (seen.st_ino, seen.st_mtime_ns, seen.st_ctime_ns)
    return found


def _ignored(folder: str, names: list[str]) -> set[str]:
    return {
        name
        for name in names
        if (Path(folder) / name).is_symlink()
        or name.endswith(".tmp")
        or (name.startswith(".") and (name.endswith(".densitywatch") or any(mark in name for mark in WORKING)))
    }


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / NOTE)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _commit(root: Path) -> str | None:
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip() or None


def _refuse_full(place: Path, advice: str) -> None:
    if place.is_file() or (place.is_dir() and any(place.iterdir())):
        raise DensitywatchError(f"{place}: there is something already; {advice}")


def _read_note(source: Path) -> dict[str, Any]:
    try:
        note = read_json(source / NOTE)
    except FileNotFoundError:
        raise DensitywatchError(f"{source}: no backup; name a folder that `make backup` has written") from None
    keys = {"format", "made", "folder", "commit", "database", "left_out", "files"}
    if not isinstance(note, dict) or not keys <= set(note) or note["format"] != FORMAT:
        raise DensitywatchError(f"{source / NOTE}: not written by this version of densitywatch; restore with that one")
    return note


def _verify(source: Path, note: dict[str, Any]) -> None:
    """Raise when a file of the backup is missing or not what was written."""
    for name, digest in note["files"].items():
        path = source / name
        if not path.resolve().is_relative_to(source.resolve()) or not path.is_file() or _digest(path) != digest:
            raise DensitywatchError(f"{path}: missing, or not what was backed up; use another backup")


def _is_there(part: Part, source: Path, files: dict[str, str]) -> bool:
    """Whether the place has every file of the backup's part already, with the same bytes."""
    if not part.place.exists():
        return False
    mine = {name: digest for name, digest in files.items() if Path(name).is_relative_to(part.name)}
    places = {name: part.place / Path(name).relative_to(part.name) for name in mine}
    return bool(mine) and all(places[name].is_file() and _digest(places[name]) == mine[name] for name in mine)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def main(arguments: list[str]) -> int:
    verb, *rest = arguments or [""]
    if (verb, len(rest)) not in (("backup", 0), ("backup", 1), ("restore", 1)):
        print("usage: make backup [TO=folder] | make restore FROM=folder", file=sys.stderr)
        return 2
    root = Path.cwd()
    try:
        environment.check_folder(root)
        environment.settle(os.environ)
        environment.read_file(root)
        if verb == "backup":
            backup(root, *map(Path, rest))
        else:
            restore(root, Path(rest[0]))
    except DensitywatchError as error:
        print(f"pipelines: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"pipelines: {error.filename or 'backup'}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
