"""The champion that the watch scores with. It keeps a copy of the last one whose files it has verified.

    var/watch/densitywatch-detector/version.json    which version, and the digest of its files
    var/watch/densitywatch-detector/<digest>/       the files

Where the alias is gone, or the champion's files are, the watch goes on with its copy and says so. A version that was
rolled back is not taken again. Without a copy, the newest earlier champion that can be verified stands in.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from densitywatch.errors import DataError, RegistryError
from densitywatch.files import content_digest, read_json, write_whole
from densitywatch.params import Params
from densitywatch.registry import history
from densitywatch.registry.champions import CHAMPION, REGISTERED, ROLLED_BACK, fetch, find, standing
from densitywatch.registry.download import champion_folder
from densitywatch.tracking.addresses import CONTENT, follow_move
from densitywatch.tracking.runs import open_client, store_errors
from densitywatch.tracking.store import check_reachable, store_lock, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEPT = Path("var") / "watch"
NOTE = "version.json"


@dataclass(frozen=True)
class OnWatch:
    """What the watch scores with."""

    folder: Path
    """The verified files."""
    stand_in: str
    """Why this is not the champion's own folder; empty where it is."""
    moved: str
    """A move of the alias by hand that was seen now for the first time; empty where there was none."""


class _Busy(Exception):
    """A promotion holds the lock; it notes a move by hand itself."""


def on_watch(name: str, params: Params, root: Path) -> OnWatch:
    """The champion of densitywatch-<name>, or what takes its place. A move of the alias by hand goes into the history.

    Raises RegistryError when there is neither a champion, nor a copy, nor an earlier champion that can be verified, or
    when the store does not answer.
    """
    uri = tracking_uri(params, root)
    check_reachable(uri, create=False)
    follow_move(uri, root)
    client = open_client(uri)
    registered = REGISTERED + name
    with store_errors(uri, RegistryError):
        moved = _note_move(client, uri, root, name)
        told = "" if moved is None else f"{registered}: {moved.reason}"
        address = f"models:/{registered}@{CHAMPION}"
        try:
            version = find(client, address)
            folder = fetch(client, uri, version)
        except RegistryError as failure:
            number, copy = _kept(client, root, registered)
            if copy is not None:
                said = f"{failure}; the watch keeps version {number}, the last one that it had verified"
                return OnWatch(copy, said if str(failure).startswith(registered) else f"{registered}: {said}", told)
            return OnWatch(*champion_folder(client, uri, address), told)
    _keep(root / KEPT / registered, str(version.version), version.tags[CONTENT], folder)
    return OnWatch(folder, "", told)


def _note_move(client: MlflowClient, uri: str, root: Path, name: str) -> history.Entry | None:
    """Write a move by hand into the history; None where there is no new one, or a promotion is at work."""

    def busy() -> None:
        raise _Busy

    with suppress(_Busy), store_lock(uri, root, f"promote-{name}", waiting=busy):
        try:
            seen = standing(client, REGISTERED + name)
        except RegistryError:  # no such model: what follows says so
            return None
        return history.catch_up(client, seen, "the watch")
    return None


def _keep(home: Path, number: str, content: str, folder: Path) -> None:
    """Copy the verified files, unless they are there; older ones go. A disk that is full keeps what it has."""
    if _noted(home).get("content") == content and (home / content).is_dir():
        return
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as scratch:
            copy = shutil.copytree(folder, Path(scratch) / content)
            shutil.rmtree(home / content, ignore_errors=True)
            copy.rename(home / content)
        write_whole(home / NOTE, json.dumps({"version": number, "content": content}) + "\n")
    except (OSError, DataError):
        return
    for old in home.iterdir():
        if old.is_dir() and old.name != content:
            shutil.rmtree(old, ignore_errors=True)


def _kept(client: MlflowClient, root: Path, registered: str) -> tuple[str, Path | None]:
    """The version and the files of the copy; no files where it is altered, or its version was rolled back."""
    home = root / KEPT / registered
    noted = _noted(home)
    number, content = str(noted.get("version", "")), str(noted.get("content", ""))
    folder = home / content
    if not number.isdecimal() or not content or not folder.is_dir() or content_digest(folder) != content:
        return number, None
    with suppress(RegistryError):  # a version that was deleted has no tags
        if find(client, f"models:/{registered}/{number}").tags.get(ROLLED_BACK):
            return number, None
    return number, folder


def _noted(home: Path) -> dict[str, object]:
    try:
        found = read_json(home / NOTE)
    except (FileNotFoundError, DataError):
        return {}
    return found if isinstance(found, dict) else {}
