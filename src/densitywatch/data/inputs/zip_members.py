"""The members of a zip file, by its directory; one bad member does not affect the others.

A member that shares bytes with another, as in a bomb of overlapping members, is refused before anything is unpacked. So
the time that a zip takes is limited by its size.
"""

from __future__ import annotations

import bz2
import lzma
import os
import struct
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from densitywatch.data.decoding.images import MAX_BYTES
from densitywatch.data.inputs.entries import OUTSIDE, TOO_LARGE, Damaged, leads_out
from densitywatch.data.inputs.unpacking import BOMB, HARMLESS, MAX_RATIO, XZ_MEMORY
from densitywatch.errors import DataError
from densitywatch.text import as_text, one_line

END, END_64, LOCATOR_64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
CENTRAL, LOCAL = b"PK\x01\x02", b"PK\x03\x04"
STORED, DEFLATED, BZIP2, LZMA = 0, 8, 12, 14
MAX_OVERLAPS = 1000
"""More members than this that share bytes are a bomb and no damage: the whole zip is refused."""
PIECE = 1 << 16
_FULL = 0xFFFFFFFF


class ZipMember(NamedTuple):
    """A member's row of the directory."""

    name: str
    offset: int
    packed: int
    size: int
    crc: int
    method: int
    flags: int
    mode: int


class ZipArchive:
    """The directory of a zip file, and the reading of one member at a time.

    Raises DataError when there is no directory.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        length = file.seek(0, os.SEEK_END)
        self._before, self._directory, size, stated = _end(file, length)
        self.members: list[ZipMember] = []
        self.wrong: str | None = None
        """What is wrong with the directory, once it has been read."""
        for member in self._read_directory(size):
            self.members.append(member)
        if self.wrong is None and stated not in (len(self.members), len(self.members) & 0xFFFF):
            self.wrong = f"its directory names {len(self.members)} members and counts {stated}"
        if not self.members and self.wrong is not None:
            raise DataError(f"broken ({self.wrong})")
        self._starts = sorted(member.offset for member in self.members)
        overlaps = sum(self._overlaps(member) for member in self.members)
        if overlaps > MAX_OVERLAPS:
            raise DataError(
                f"{overlaps:,} of its {len(self.members):,} members share their bytes, as in a bomb; not unpacked"
            )
        self._packed = self._unpacked = 0

    def _read_directory(self, size: int) -> Iterator[ZipMember]:
        self._file.seek(self._directory)
        held, left = b"", size
        while left > 0 or held:
            if len(held) < 1 << 18 and left > 0:
                piece = self._file.read(min(left, 1 << 20))
                left = left - len(piece) if piece else 0
                held += piece
            found = _central(held)
            if found is None:
                self.wrong = f"its directory is damaged after {len(self.members)} members"
                return
            member, used = found
            held = held[used:] if used < len(held) else b""
            yield member

    def _overlaps(self, member: ZipMember) -> bool:
        """Whether another member begins at this one's start, or the next member or the directory before its end."""
        place = bisect_right(self._starts, member.offset)
        if place - bisect_left(self._starts, member.offset) > 1:
            return True
        limit = self._starts[place] if place < len(self._starts) else self._directory - self._before
        return member.offset + 30 + member.packed > limit

    def reason(self, member: ZipMember) -> str | None:
        """Why a member is not read, or None."""
        if leads_out(member.name):
            return OUTSIDE
        if member.mode >> 12 == 0o12:
            return "a symbolic link inside the archive; not followed"
        if member.flags & 1:
            return "encrypted; there is no password to open it"
        if member.method not in (STORED, DEFLATED, BZIP2, LZMA):
            return f"packed by a method (number {member.method}) that is not read; save it with the usual one"
        if self._overlaps(member):
            return "shares its bytes with another member or reaches beyond the archive; not unpacked"
        if member.size > MAX_BYTES or member.packed > 2 * MAX_BYTES:
            return TOO_LARGE
        if member.size > HARMLESS and member.size > MAX_RATIO * member.packed:
            return BOMB
        return None

    def read(self, member: ZipMember) -> bytes:
        """A member's bytes. Raises DataError when they cannot be read, or are not those that were packed."""
        if (reason := self.reason(member)) is not None:
            raise DataError(reason)
        unpacked, packed = self._unpacked + member.size, self._packed + member.packed
        if unpacked > HARMLESS and unpacked > MAX_RATIO * packed:
            raise DataError(BOMB)
        self._unpacked, self._packed = unpacked, packed
        self._file.seek(self._before + member.offset)
        head = self._file.read(30)
        if len(head) < 30 or not head.startswith(LOCAL):
            raise DataError("cannot be unpacked (there is no member where the directory says)")
        names = sum(struct.unpack("<HH", head[26:30]))
        self._file.seek(names, os.SEEK_CUR)
        try:
            data = _unpacked(self._file, member)
        except (zlib.error, lzma.LZMAError, struct.error, OSError, EOFError, ValueError) as error:
            raise DataError(f"cannot be unpacked ({one_line(error)})") from None
        if len(data) != member.size:
            raise DataError(f"cannot be unpacked ({len(data)} bytes where the directory says {member.size})")
        if zlib.crc32(data) != member.crc:
            raise DataError("cannot be unpacked (its checksum does not fit)")
        return data

    def complain(self) -> None:
        """Raise Damaged when the directory is not whole."""
        if self.wrong is not None:
            raise Damaged(f"{self.wrong}; {len(self.members)} members were found, others may be missing")


def _unpacked(file: BinaryIO, member: ZipMember) -> bytes:
    if member.method == STORED:
        return file.read(member.packed)
    if member.method == DEFLATED:
        inner = zlib.decompressobj(-zlib.MAX_WBITS)
        unpack: Callable[[bytes, int], bytes] = lambda data, most: inner.decompress(  # noqa: E731
            inner.unconsumed_tail + data, most
        )
        return _in_pieces(file, member, unpack, lambda: inner.eof)
    if member.method == BZIP2:
        bzip2 = bz2.BZ2Decompressor()
        return _in_pieces(file, member, bzip2.decompress, lambda: bzip2.eof)
    _, length = struct.unpack("<HH", file.read(4))
    properties = file.read(length)
    settings = lzma._decode_filter_properties(lzma.FILTER_LZMA1, properties)  # type: ignore[attr-defined]
    if settings["dict_size"] > XZ_MEMORY:
        raise DataError(f"cannot be unpacked (it asks for {settings['dict_size'] >> 20} MiB of memory)")
    xz = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[settings])
    inside = member._replace(packed=member.packed - 4 - length)
    return _in_pieces(file, inside, xz.decompress, lambda: xz.eof)


def _in_pieces(
    file: BinaryIO, member: ZipMember, unpack: Callable[[bytes, int], bytes], at_end: Callable[[], bool]
) -> bytes:
    """The unpacked bytes of `member.packed` bytes, at most one more than `member.size`."""
    found, left = bytearray(), member.packed
    while len(found) <= member.size and not at_end():
        data = file.read(min(PIECE, left))
        left -= len(data)
        new = unpack(data, member.size + 1 - len(found))
        if not data and not new:
            break
        found += new
    return bytes(found)


def _end(file: BinaryIO, length: int) -> tuple[int, int, int, int]:
    """Number of bytes before the archive, offset and size of its directory, and the number of members it states."""
    start = max(0, length - 22 - 0xFFFF)
    file.seek(start)
    tail = file.read(length - start)
    at = tail.rfind(END)
    if at < 0 or len(tail) - at < 22:
        raise DataError("broken (no directory at its end: not a zip file, or cut short)")
    count, size, offset = struct.unpack("<HII", tail[at + 10 : at + 20])
    place = start + at
    end = place
    if tail[at - 20 : at - 16] == LOCATOR_64 and at >= 20:
        where = struct.unpack("<Q", tail[at - 12 : at - 4])[0]
        for candidate in (place - 76, where):
            if not 0 <= candidate <= length - 56:
                continue
            file.seek(candidate)
            record = file.read(56)
            if record.startswith(END_64):
                count, size, offset = struct.unpack("<QQQ", record[32:56])
                end = candidate
                break
    before = end - size - offset
    if before < 0 or size > end:
        raise DataError("broken (its directory lies beyond its end)")
    return before, end - size, size, count


def _central(data: bytes) -> tuple[ZipMember, int] | None:
    """The first member of a directory and the number of bytes of its row; None where there is none."""
    if len(data) < 46 or not data.startswith(CENTRAL):
        return None
    flags, method, _, crc, packed, size, names, extras, comments = struct.unpack("<HHIIIIHHH", data[8:34])
    outer, offset = struct.unpack("<II", data[38:46])
    used = 46 + names + extras + comments
    if used > len(data):
        return None
    extra = data[46 + names : 46 + names + extras]
    values = _zip64(extra, [size, packed, offset])
    if values is None:
        return None
    size, packed, offset = values
    mode = outer >> 16 if data[5] == 3 else 0  # of a Unix archive
    return ZipMember(_name(data[46 : 46 + names], flags), offset, packed, size, crc, method, flags, mode), used


def _name(raw: bytes, flags: int) -> str:
    """A name in UTF-8 where it is valid, flagged or not (macOS does not flag it), or else in the first zips' cp437."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("utf-8", "surrogateescape") if flags & 0x800 else raw.decode("cp437")
    return as_text(text).replace("\0", "\\x00")


def _zip64(extra: bytes, values: list[int]) -> list[int] | None:
    """`values`; those too large for four bytes are taken from the extra field. None where it is damaged."""
    if _FULL not in values:
        return values
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack("<HH", extra[at : at + 4])
        body = extra[at + 4 : at + 4 + length]
        if kind == 1:
            large = [value == _FULL for value in values]
            if len(body) < 8 * sum(large):
                return None
            given = iter(struct.unpack(f"<{sum(large)}Q", body[: 8 * sum(large)]))
            return [next(given) if is_large else value for value, is_large in zip(values, large, strict=True)]
        at += 4 + length
    return values
