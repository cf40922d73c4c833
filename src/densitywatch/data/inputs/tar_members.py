"""The members of a tar file, packed or not, one after the other, however it is damaged.

Python's tarfile ends without a word at the first header that does not match its checksum, and can be made to compute
for minutes. This reader knows v7, ustar, pax and GNU headers, skips what is broken up to the next whole header, and
says at the end what was wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from densitywatch.data.decoding.images import MAX_BYTES
from densitywatch.data.inputs.entries import (
    OUTSIDE,
    TOO_LARGE,
    Damaged,
    Entry,
    leads_out,
    refused,
)
from densitywatch.data.inputs.unpacking import Stream, stream_of
from densitywatch.errors import DataError
from densitywatch.text import as_text

BLOCK = 512
ZEROS = bytes(BLOCK)
MAX_EXTENDED = 1 << 20
"""Most bytes of a long name or of a pax header; a path has a few hundred."""
_REGULAR, _FOLDER, _LINKS = b"0\x007", b"5", b"12"
_LONG_NAME, _LONG_LINK, _PAX, _PAX_FOR_ALL, _SPARSE, _VOLUME = b"L", b"K", b"xX", b"g", b"S", b"V"
_WITHOUT_DATA = b"123456"


class _Header(NamedTuple):
    name: bytes
    size: int
    kind: bytes
    extended: bool
    """A sparse file of whose map more blocks follow."""


class _Extended(NamedTuple):
    """The extra headers of a member."""

    name: bytes | None = None
    size: int | None = None
    sparse: bool = False
    reason: str | None = None
    """Why the member is not read, where its extra headers cannot be used."""


def tar_members(file: BinaryIO, prefix: str) -> Iterator[Entry]:
    """Every member that is no folder. Raises DataError at the end when something was wrong."""
    stream = stream_of(file)
    wrong: list[str] = []
    members, zeros, lost, extended = 0, 0, False, _Extended()
    while len(block := stream.read(BLOCK)) == BLOCK:
        if block == ZEROS:
            zeros += 1
            continue
        header = _header(block)
        if header is None:
            if not lost:
                wrong.append(f"a damaged header after {members} members")
            zeros, lost, extended = 0, True, _Extended()
            continue
        zeros, lost = 0, False
        if header.kind in (_LONG_NAME, _LONG_LINK, _PAX[:1], _PAX[1:], _PAX_FOR_ALL):
            extended = _with_extension(extended, header, stream)
            continue
        if header.kind == _VOLUME:
            continue
        while header.extended:
            header = header._replace(extended=stream.read(BLOCK)[504:505] not in (b"", b"\0"))
        member, extended = _Member(header, extended, stream), _Extended()
        if not member.folder:
            members += 1
            yield Entry(prefix + member.name, member.read, independent=False)
        if not member.close():
            wrong.append(f"member {members} is longer than what is left of the archive")
            lost = True
    if stream.failure is not None:
        wrong.append(str(stream.failure))
    elif block:
        wrong.append(f"it breaks off inside a header after {members} members")
    elif zeros == 0 and not wrong:
        wrong.append(f"it breaks off after {members} members, without the mark of its end")
    if members == 0 and wrong:
        raise DataError(wrong[-1] if stream.failure is not None else "broken (no tar file, or its headers are damaged)")
    if wrong:
        more = f" (and {len(wrong) - 1} more faults)" if len(wrong) > 1 else ""
        raise Damaged(f"{wrong[0]}{more}; {members} members were found, others may be missing")


class _Member:
    """A member while it is the next thing in the stream."""

    def __init__(self, header: _Header, extended: _Extended, stream: Stream) -> None:
        self.name = as_text((extended.name or header.name).decode("utf-8", "surrogateescape")).replace("\0", "\\x00")
        self.folder = header.kind == _FOLDER or (header.kind == b"\0" and self.name.endswith("/"))
        size = header.size if extended.size is None else extended.size
        self._size = 0 if header.kind in _WITHOUT_DATA else size
        self._taken, self._stream = 0, stream
        left = stream.left()
        self._whole = left is None or self._size <= left
        self._refused = self._reason(header, extended)

    def _reason(self, header: _Header, extended: _Extended) -> str | None:
        if extended.reason is not None:
            return extended.reason
        if leads_out(self.name):
            return OUTSIDE
        if header.kind in _LINKS:
            return "a link inside the archive; not followed"
        if header.kind not in _REGULAR or extended.sparse:
            return "not a regular file"
        if self._size > MAX_BYTES:
            return TOO_LARGE
        return None

    @property
    def read(self) -> Callable[[], bytes]:
        return self._read if self._refused is None else refused(self._refused)

    def _read(self) -> bytes:
        if not self._whole:
            # nothing is read, so the search for the next header starts here: it may be the size that is wrong
            raise DataError("breaks off before its end")
        data = self._stream.read(self._size)
        self._taken = len(data)
        if len(data) < self._size:
            raise self._stream.failure or DataError("breaks off before its end")
        return data

    def close(self) -> bool:
        """Go to the next header; False when the member is longer than the rest of the archive."""
        if not self._whole:
            return False
        rest = self._size + -self._size % BLOCK - self._taken
        # the zeros that fill the last block may be missing at the very end
        return self._stream.skip(rest) or self._taken == self._size or self._stream.failure is not None


def _header(block: bytes) -> _Header | None:
    """The header in a block; None when the block is no header or a damaged one."""
    stated = _number(block[148:156])
    if stated is None:
        return None
    rest = block[:148] + b" " * 8 + block[156:]
    if stated != sum(rest) and stated != sum(rest) - 256 * sum(byte > 127 for byte in rest):
        return None
    size = _number(block[124:136])
    if size is None:
        return None
    name, kind = block[:100].partition(b"\0")[0], block[156:157]
    if block[257:263] == b"ustar\0" and (before := block[345:500].partition(b"\0")[0]):
        name = before + b"/" + name
    return _Header(name, size, kind, extended=kind == _SPARSE and block[482:483] not in (b"", b"\0"))


def _number(field: bytes) -> int | None:
    """A number in octal digits, or in GNU's base 256 where it is too large for them; None for anything else."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    return int(digits or b"0", 8) if re.fullmatch(rb"[0-7]*", digits) else None


def _with_extension(known: _Extended, header: _Header, stream: Stream) -> _Extended:
    """`known` with what the extra header says; its data come next in the stream."""
    room = header.size + -header.size % BLOCK
    if header.size > MAX_EXTENDED or header.kind in (_PAX_FOR_ALL, _LONG_LINK):
        left = stream.left()
        if left is None or room <= left:
            stream.skip(room)
        if header.kind in (_PAX_FOR_ALL, _LONG_LINK):
            return known
        return known._replace(reason="its extra header is larger than 1 MiB; not read")
    data = stream.read(room)[: header.size]
    if header.kind == _LONG_NAME:
        return known._replace(name=data.partition(b"\0")[0] or None)
    records = _pax_records(data)
    if records is None:
        return known._replace(reason="its extra header is damaged; save it again")
    found = known
    if b"path" in records:
        found = found._replace(name=records[b"path"] or None)
    if b"size" in records:
        size = records[b"size"]
        if not re.fullmatch(rb"[0-9]{1,20}", size):
            return found._replace(reason="its extra header is damaged; save it again")
        found = found._replace(size=int(size))
    return found._replace(sparse=found.sparse or any(key.startswith(b"GNU.sparse.") for key in records))


def _pax_records(data: bytes) -> dict[bytes, bytes] | None:
    """Lines `length key=value`, each of them `length` bytes long; None for other data. Time grows with the length."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(data) and data[at] != 0:
        space = data.find(b" ", at, at + 12)
        if space < 0 or not data[at:space].isdigit():
            return None
        end = at + int(data[at:space])
        if end <= space + 1 or end > len(data) or data[end - 1 : end] != b"\n":
            return None
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals:
            return None
        found[key] = value
        at = end
    return found
