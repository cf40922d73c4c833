"""The source of a batch or a dataset: a folder, a glob, a zip or tar archive, Parquet, or any fsspec address.

A source is a sequence of `Entry`, one for each input file, in an order that depends only on the files. Nothing is
extracted to disk, nothing outside the source is read, and one entry's bytes are in memory at a time. Zip, tar and
Parquet files inside a folder are opened too, one level deep. A file that cannot be read is an entry whose `read` raises
the reason.
"""

from __future__ import annotations

import glob
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from densitywatch.data.inputs.archives import archive_kind, members
from densitywatch.data.inputs.clutter import kind_in_batch, kind_in_dataset, split_clutter
from densitywatch.data.inputs.entries import Entry, SourceUnreachable, read_limited, refused
from densitywatch.data.inputs.local_tree import LINK_OUT, Tree
from densitywatch.errors import DataError
from densitywatch.text import as_text, one_line

MARKER = "_SUCCESS"
"""The file that marks a batch as complete; never an input."""
REMOTE_TRIES = 3
QUICK = {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 2}}
DATASET_LINK_OUT = (
    "a symbolic link that leads out of the folder; not followed (data.follow_links: true in params.yaml reads what it "
    "leads to)"
)
_LOCAL = ("file://", "local://")
_ENDS_AS_A_PICTURE = re.compile(r"\.(png|jpe?g|webp|bmp|gif|tiff?|p[bgnp]m)$", re.IGNORECASE)


@dataclass(frozen=True)
class _Asked:
    """The options of reading a source."""

    follow_links: bool
    skipped: Counter[str]
    dataset: bool

    def kind_of(self, name: str) -> str | None:
        return kind_in_dataset(name) if self.dataset else kind_in_batch(name)

    def kept(self, names: Iterable[str]) -> list[str]:
        kept, clutter = split_clutter(names, self.kind_of)
        self.skipped.update(clutter)
        return kept

    def tree(self, top: Path) -> Tree:
        return Tree(top, follow_links=self.follow_links, link_out=DATASET_LINK_OUT if self.dataset else LINK_OUT)


def entries(
    source: str, *, follow_links: bool = False, skipped: Counter[str] | None = None, dataset: bool = False
) -> Iterator[Entry]:
    """Every input file of `source`, in a fixed order.

    Files that are no images by their names (clutter.py) are left out and counted in `skipped`. `follow_links`: read the
    files that symbolic links lead to, also outside of the source, as in a Hugging Face snapshot. `dataset`: masks are
    left out too, tables of labels are entries, and rows of Parquet files have labels.
    Raises DataError, before the first entry, when there is no such source or it cannot be reached.
    """
    asked = _Asked(follow_links, Counter() if skipped is None else skipped, dataset)
    if is_local(source):
        return _local(local_path(source), asked)
    return _remote(source, asked)


def is_local(source: str) -> bool:
    return source.startswith(_LOCAL) or not ("://" in source or "::" in source)


def local_path(source: str) -> Path:
    """The path of a local source, with or without `file://` or `local://` before it."""
    for protocol in _LOCAL:
        source = source.removeprefix(protocol)
    return Path(source)


def without_secrets(source: str) -> str:
    """`source` without the user, password and query of an address, so that it may be shown."""
    if "://" not in source:
        return source
    return re.sub(r"\?(?:[^:]|:(?!:))*", "", re.sub(r"(\w+://)[^/@:]*(:[^@/]*)?@", r"\1", source))


def _local(path: Path, asked: _Asked) -> Iterator[Entry]:
    if path.is_dir():
        tree = asked.tree(path)
        with tree.scan(""):  # raise now for a folder that cannot be read: a generator would do so at its first entry
            pass
        return _walk(tree, asked)
    if path.is_file():
        # a link is followed when it is the source itself
        return _file(Tree(path.parent, follow_links=True), path.name, asked, alone=True)
    if glob.has_magic(str(path)):
        return _local_glob(path, asked)
    if path.exists():
        raise DataError(f"{as_text(str(path))}: neither a folder nor a file; give a folder, an archive or a glob")
    raise DataError(f"{as_text(str(path))}: no such folder or file; check the source's spelling")


def _walk(tree: Tree, asked: _Asked) -> Iterator[Entry]:
    """Depth first, without recursion: folders may be nested a thousand deep."""
    folders = [""]
    while folders:
        folder = folders.pop()
        before = f"{folder}/" if folder else ""
        try:
            with tree.scan(folder) as found:
                # only the names: a hundred thousand directory entries would take five times the memory
                kinds = [(child.name, child.is_dir(follow_symlinks=False)) for child in found]
        except DataError as error:
            yield Entry(as_text(folder), refused(str(error)))
            continue
        kinds.sort(key=lambda kind: os.fsencode(kind[0]))
        folders.extend(f"{before}{name}" for name, inside in reversed(kinds) if inside)
        names = [name for name, inside in kinds if not inside]
        del kinds
        if before and (kind := asked.kind_of(f"{before}-")) is not None:
            asked.skipped[kind] += len(names)
            continue
        for name in asked.kept(names):
            yield from _file(tree, f"{before}{name}", asked)


def _local_glob(pattern: Path, asked: _Asked) -> Iterator[Entry]:
    fixed = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    base = Path(*fixed)
    found = sorted(glob.glob(str(pattern), recursive=True), key=os.fsencode)  # noqa: PTH207 (names that are no UTF-8)
    if not found:
        raise DataError(f"{as_text(str(pattern))}: matches no file; check the pattern, and quote it for the shell")
    tree = asked.tree(base)
    # a recursive pattern lists a folder's files by itself
    names = asked.kept(
        os.path.relpath(path, base)
        for path in found
        if os.path.islink(path) or not os.path.isdir(path)  # noqa: PTH112, PTH114
    )
    return (entry for name in names for entry in _file(tree, name, asked))


def _file(tree: Tree, name: str, asked: _Asked, *, alone: bool = False) -> Iterator[Entry]:
    """A file's own entry, or its members' when it is an archive; `alone`: the file is the whole source."""
    shown = as_text(name)
    if archive_kind(name) is None:
        yield Entry(shown, partial(tree.read, name))
        return
    try:
        file = tree.open(name)
    except DataError as error:
        yield Entry(shown, refused(str(error)))
        return
    with file:
        yield from members(file, shown, "" if alone else f"{shown}/", asked.skipped, dataset=asked.dataset)


def _remote(source: str, asked: _Asked) -> Iterator[Entry]:
    import fsspec

    shown = without_secrets(source)
    try:
        # a dataset with an S3 endpoint that does not exist should stop in seconds, not after minutes of retries
        quick = asked.dataset and source.split("://")[0] in ("s3", "s3a")
        filesystem, path = fsspec.core.url_to_fs(source, **({"config_kwargs": QUICK} if quick else {}))
        plain = _without_query(filesystem, path)
        if glob.has_magic(plain) and not filesystem.exists(path):  # a name may have brackets in it
            base = re.split(r"[^/]*[*?\[]", path, maxsplit=1)[0]
            found = [name for name in filesystem.glob(path) if not filesystem.isdir(name)]
        elif plain != path or (_is_web(filesystem) and (archive_kind(plain) or _ENDS_AS_A_PICTURE.search(plain))):
            # a web server has no folders to look into
            base, found = plain.rpartition("/")[0], [path]
            if not filesystem.exists(path):
                raise FileNotFoundError
        elif filesystem.isdir(path):
            base, found = path, filesystem.find(path)
        elif filesystem.isfile(path):
            base, found = path.rpartition("/")[0], [path]
        else:
            raise FileNotFoundError
        found = sorted(found)
    except FileNotFoundError:
        raise DataError(f"{shown}: no such folder or file; check the address") from None
    except Exception as error:  # every file system behind fsspec has its own exceptions
        raise DataError(f"{shown}: cannot be reached ({one_line(error)})") from None
    if alone := found == [path]:
        return _remote_entries(filesystem, found, base, asked, alone=alone)
    wanted = set(asked.kept(_below(name, base) for name in found))
    return _remote_entries(filesystem, [name for name in found if _below(name, base) in wanted], base, asked)


def _is_web(filesystem: Any) -> bool:
    protocols = (filesystem.protocol,) if isinstance(filesystem.protocol, str) else filesystem.protocol
    return bool({"http", "https"} & set(protocols))


def _without_query(filesystem: Any, path: str) -> str:
    """On the web a question mark begins a query, which is not part of the name; elsewhere it belongs to a pattern."""
    return path.partition("?")[0] if _is_web(filesystem) else path


def _remote_entries(
    filesystem: Any, found: list[str], base: str, asked: _Asked, *, alone: bool = False
) -> Iterator[Entry]:
    for path in found:
        name = as_text(_below(_without_query(filesystem, path), base))
        if archive_kind(name) is None:
            yield Entry(name, partial(read_remote, filesystem, path, name))
            continue
        try:
            file = filesystem.open(path, "rb")
        except FileNotFoundError:
            yield Entry(name, refused("went away while the batch was read"))
            continue
        with file, io.BufferedReader(_Watched(file, name), 1 << 20) as watched:
            shown = "" if alone else f"{name}/"
            yield from members(cast(BinaryIO, watched), name, shown, asked.skipped, dataset=asked.dataset)


def _below(path: str, base: str) -> str:
    return path.removeprefix(base).lstrip("/")


def read_remote(filesystem: Any, path: str, name: str) -> bytes:
    """One file's bytes. Raises DataError for a file that is gone or not allowed, SourceUnreachable for the rest."""
    for attempt in range(1, REMOTE_TRIES + 1):
        try:
            with filesystem.open(path, "rb") as file:
                return read_limited(file)
        except FileNotFoundError:
            raise DataError("went away while the batch was read") from None
        except PermissionError:
            raise DataError("this user may not read it") from None
        except DataError:
            raise
        except Exception as error:  # every file system behind fsspec has its own exceptions
            if attempt == REMOTE_TRIES:
                raise _unreachable(name, error) from None
    raise AssertionError("the loop returns or raises")


class _Watched(io.RawIOBase):
    """A remote archive whose failed reads raise SourceUnreachable: the store is at fault and not the archive."""

    def __init__(self, file: Any, path: str) -> None:
        super().__init__()
        self._file, self._path = file, path

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except Exception as error:
            raise _unreachable(self._path, error) from None
        buffer[: len(data)] = data
        return len(data)


def _unreachable(path: str, error: Exception) -> SourceUnreachable:
    unreachable = SourceUnreachable(
        f"{as_text(path)}: cannot be read any more ({one_line(error)}); run it again to go on from here"
    )
    unreachable.why = one_line(error)
    return unreachable
