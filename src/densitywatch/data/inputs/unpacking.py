"""A stream of bytes, packed (gzip, bzip2, xz) or not, read forward within limits.

Of a damaged stream the bytes before the damage are given. What is wrong, a checksum too, is in `failure` once reading
has come there.
"""

from __future__ import annotations

import bz2
import lzma
import os
import zlib
from abc import ABC, abstractmethod
from typing import BinaryIO, Protocol

from densitywatch.data.inputs.entries import SourceUnreachable
from densitywatch.errors import DataError
from densitywatch.text import one_line

MAX_RATIO = 200
"""Unpacked over packed size beyond which an archive is taken for a bomb; images are compressed already."""
HARMLESS = 16 << 20
"""Unpacked bytes up to which nothing is taken for a bomb."""
BOMB = "unpacks to far more than its packed size, as a bomb does; not unpacked"
XZ_MEMORY = 256 << 20
"""Bytes of memory that unpacking xz may take: `xz -9` needs 65 MiB, a crafted header asks for 4 GiB."""
PIECE = 1 << 16
"""Packed bytes read at a time."""
UNPACKED_PIECE = 1 << 18


class _Engine(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def needs_input(self) -> bool: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib's object with the interface of the other two; it checks the checksum at the end of each part."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(zlib.MAX_WBITS | 16)
        self._failure: zlib.error | None = None

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        if self._failure is not None:
            raise self._failure
        data = self._inner.unconsumed_tail + data
        before = self._inner.copy()
        try:
            return self._inner.decompress(data, max_length)
        except zlib.error as error:
            # with the error zlib drops the bytes before it: unpack again up to there, byte by byte
            self._failure = error
            found = bytearray()
            try:
                for at in range(len(data)):
                    found += before.decompress(data[at : at + 1])
            except zlib.error:
                pass
            return bytes(found)


def stream_of(file: BinaryIO) -> Stream:
    """The bytes of `file`, unpacked when it begins as a gzip, bzip2 or xz file does."""
    file.seek(0)
    start = file.read(6)
    file.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return PackedStream(file, "gzip")
    if start.startswith(b"BZh"):
        return PackedStream(file, "bzip2")
    if start == b"\xfd7zXZ\x00":
        return PackedStream(file, "xz")
    return PlainStream(file)


class Stream(ABC):
    """Bytes that are read forward. `failure`: why the stream ended early."""

    def __init__(self) -> None:
        self.failure: DataError | None = None

    @abstractmethod
    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end."""

    def skip(self, size: int) -> bool:
        """Skip the next `size` bytes; returns whether there were that many."""
        while size > 0:
            step = min(size, 1 << 20)
            if len(self.read(step)) < step:
                return False
            size -= step
        return True

    def left(self) -> int | None:
        """Number of bytes left, where that is known without reading them."""
        return None


class PlainStream(Stream):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._length = file.seek(0, os.SEEK_END)
        self._at = file.seek(0)

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._at += len(data)
        return data

    def skip(self, size: int) -> bool:
        there = size <= self._length - self._at
        self._at = self._file.seek(self._at + size if there else self._length)
        return there

    def left(self) -> int:
        return self._length - self._at


class PackedStream(Stream):
    def __init__(self, file: BinaryIO, kind: str) -> None:
        super().__init__()
        self._file, self._kind = file, kind
        self._engine = self._new_engine()
        self._held = bytearray()
        self._over = False
        self._packed = self._unpacked = 0

    def read(self, size: int) -> bytes:
        while len(self._held) < size and not self._over:
            try:
                self._more()
            except SourceUnreachable:
                raise
            except DataError as error:
                self.failure, self._over = error, True
            except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
                self.failure, self._over = DataError(f"broken ({one_line(error)})"), True
        data = bytes(self._held[:size])
        del self._held[:size]
        return data

    def _more(self) -> None:
        if self._engine.eof:
            # several packed files in a row are one stream; zeros between and behind them are padding
            data = self._engine.unused_data.lstrip(b"\0")
            while not data:
                if not (data := self._next_piece()):
                    self._over = True
                    return
                data = data.lstrip(b"\0")
            self._engine = self._new_engine()
            self._held += self._counted(self._engine.decompress(data, UNPACKED_PIECE))
            return
        data = self._next_piece() if self._engine.needs_input else b""
        found = self._engine.decompress(data, UNPACKED_PIECE)
        if not data and not found and self._engine.needs_input and not self._engine.eof:
            raise DataError(f"broken (the {self._kind} data break off before their end)")
        self._held += self._counted(found)

    def _next_piece(self) -> bytes:
        data = self._file.read(PIECE)
        self._packed += len(data)
        return data

    def _counted(self, data: bytes) -> bytes:
        self._unpacked += len(data)
        if self._unpacked > HARMLESS and self._unpacked > MAX_RATIO * self._packed:
            raise DataError(BOMB)
        return data

    def _new_engine(self) -> _Engine:
        if self._kind == "gzip":
            return _Gzip()
        return bz2.BZ2Decompressor() if self._kind == "bzip2" else lzma.LZMADecompressor(memlimit=XZ_MEMORY)
