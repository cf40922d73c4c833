"""What came through the DVC remote: its bytes are compared with the digests that DVC wrote into dvc.lock."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from densitywatch.files import file_digest, write_whole
from pipelines.dvc_commands import StageFailed

DIGEST = re.compile(r"[0-9a-f]{32}(\.dir)?")
_one_thread = threading.Lock()


def md5_of(path: Path) -> str:
    """The digest that DVC uses."""
    return file_digest(path, "md5")


def digest(path: Path) -> str:
    """The digest of a file or a folder, read anew, as DVC writes it into dvc.lock.

    Raises OSError when it is not there.
    """
    if not path.is_dir():
        return md5_of(path)
    files = sorted(found for found in path.rglob("*") if found.is_file())
    listed = [{"md5": md5_of(file), "relpath": file.relative_to(path).as_posix()} for file in files]
    listed.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def check_outs(told: Mapping[str, str], outs: Iterable[str]) -> None:
    """Compare the paths that a worker tells of with the stage's own, and look at the shape of their digests.

    Both come from the server, and `check_digests` removes what does not fit. Raises StageFailed for any other path.
    """
    other = sorted(set(told) ^ set(outs))
    if other:
        raise StageFailed(f"{other[0]!r} is not in both the worker's result and the stage's outputs in dvc.yaml")
    for path, expected in told.items():
        if DIGEST.fullmatch(expected) is None:
            raise StageFailed(f"{path}: the worker's result has {expected[:40]!r} and not a digest for it")


def check_digests(wanted: Mapping[str, str], root: Path) -> None:
    """Compare the bytes of files and folders, read anew, with their digests.

    DVC takes what it fetched for what it asked for. What does not fit is removed here and from DVC's cache, so that it
    is never used and the next try fetches it again.

    Raises StageFailed, which names the first path that does not fit and the damaged file of the remote.
    """
    for path, expected in wanted.items():
        try:
            found = digest(root / path)
        except OSError:
            raise StageFailed(f"{path} did not arrive through the DVC remote") from None
        if found != expected:
            damaged = _remove_damaged(root / path, expected, root)
            files = " and ".join(f"files/md5/{name[:2]}/{name[2:]}" for name in damaged)
            raise StageFailed(
                f"{path} arrived with the digest {found}, not {expected}, so it is damaged in the DVC remote; delete"
                f" {files} there, and run again"
            )


def _remove_damaged(path: Path, expected: str, root: Path) -> list[str]:
    """Remove `path`, and from the cache what is damaged in it; return the names to delete in the remote."""
    with opened(root) as repo:
        cache = repo.cache.local
        names = {path: expected}
        if expected.endswith(".dir"):
            with suppress(OSError, ValueError, TypeError, KeyError):
                listed = json.loads(Path(cache.oid_to_path(expected)).read_bytes())
                listed = [entry for entry in listed if DIGEST.fullmatch(entry["md5"])]  # the list may be damaged too
                names = {path / entry["relpath"]: str(entry["md5"]) for entry in listed}
        damaged = [name for file, name in names.items() if not file.is_file() or md5_of(file) != name]
        if path not in names or not damaged:
            damaged.append(expected)  # while the remote has a folder's list, DVC does not look for the folder's files
        for name in damaged:
            Path(cache.oid_to_path(name)).unlink(missing_ok=True)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return damaged


def lock_entries(root: Path) -> dict[str, Any]:
    """The stages of dvc.lock, which other processes may be writing at this moment; empty where there is none yet."""
    for _ in range(50):
        try:
            content = yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8"))
            return dict(content["stages"])
        except FileNotFoundError:
            return {}
        except (yaml.YAMLError, TypeError, KeyError):
            time.sleep(0.1)
    raise StageFailed(f"{root / 'dvc.lock'} cannot be read; `git checkout dvc.lock` brings the last one back")


def out_digests(entry: Mapping[str, Any]) -> dict[str, str]:
    """The digest of each output in a stage's entry of dvc.lock."""
    return {str(out["path"]): str(out["md5"]) for out in entry.get("outs", [])}


def put_into_cache(text: str, root: Path) -> None:
    """Give DVC's cache a small file that git keeps and the remote does not."""
    content = text.encode()
    with opened(root) as repo:
        path = Path(repo.cache.local.oid_to_path(hashlib.md5(content, usedforsecurity=False).hexdigest()))
    if not path.is_file():
        write_whole(path, content)


@contextmanager
def opened(root: Path) -> Iterator[Any]:
    """DVC's Repo of a project, for one thread at a time: it is not made for several."""
    from dvc.repo import Repo

    with _one_thread, Repo(str(root)) as repo:
        yield repo
