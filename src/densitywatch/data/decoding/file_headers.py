"""Checks of a file's own bytes before Pillow decodes it: of what Pillow ignores, refuses or fails on."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from densitywatch.errors import DataError

PNG = b"\x89PNG\r\n\x1a\n"
SMALL = 64 << 10
"""Bytes that a PNG's text with a camera's orientation has at most."""
MAX_TILE = 16 << 20
RLE_PIXELS = 128
"""Pixels that a byte of run-length coding stands for at most."""

_RAW = "a camera raw; develop it and save the picture as JPEG or PNG"
_NAMED = (
    (re.compile(rb"(\xef\xbb\xbf)?\s*<"), "text such as HTML or SVG, not an image"),
    (re.compile(rb"....ftypcrx", re.DOTALL), "a camera raw (CR3); develop it and save the picture as JPEG or PNG"),
    (re.compile(rb"II\*\0\x10\0\0\0CR|FUJIFILMCCD-RAW|IIRO|IIRS|IIU\0|\0MRM"), _RAW),
    (re.compile(rb"....ftyp(hei|hev|mif1|msf1)", re.DOTALL), "a HEIC that cannot be read; save it as JPEG or PNG"),
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), "an AVIF that cannot be read; save it as JPEG or PNG"),
    (re.compile(rb"....ftyp", re.DOTALL), "a film, not an image; save a picture of it as JPEG or PNG"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "a JPEG XL, which is not read; save it as JPEG or PNG"),
    (re.compile(rb"8BPS"), "a Photoshop document, which is not read; save it as PNG"),
    (re.compile(rb"%PDF"), "a PDF, which is not read; save the picture in it as PNG"),
    (re.compile(rb"\0\0[\x01\x02]\0[\x01-\xff]\0"), "an icon or a cursor, which is not read; save it as PNG"),
    (re.compile(rb"v/1\x01|#\?R"), "a picture of high dynamic range, which is not read; save it as PNG"),
    (re.compile(rb".{128}DICM", re.DOTALL), "a DICOM file, which is not read; save its picture as PNG"),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "a TIFF that is broken or laid out as none that is read; save it as PNG"),
)  # fmt: skip


def what_it_is(data: bytes, formats: tuple[str, ...]) -> str:
    """Why a file that no decoder takes is not read, in words about what it is."""
    for pattern, reason in _NAMED:
        if pattern.match(data):
            return reason
    return f"not an image in a known format ({', '.join(formats)})"


class Prepared(NamedTuple):
    """A file's bytes for Pillow, and facts that Pillow does not report."""

    data: bytes
    deep: bool = False
    """Samples of 16 bits that Pillow may cut down to 8."""
    inverted: bool = False
    """Zero is white, and Pillow does not invert it."""
    white: int | None = None
    """The value of white, where the file says so."""


def prepared(data: bytes) -> Prepared:
    """`data` ready for Pillow. Raises DataError for a file that would be decoded to another picture, or to too much."""
    if data.startswith(PNG):
        return _png(data)
    if data[:4] in (b"II*\0", b"MM\0*"):
        return _tiff(data)
    if data[:2] in (b"P1", b"P2", b"P3"):
        return Prepared(re.sub(rb"#[^\n\r]*", b"", data))  # Pillow takes seconds for a file full of comments
    if data[:2] == b"BM":
        _check_bmp(data)
    return Prepared(data)


def _png(data: bytes) -> Prepared:
    """A PNG without the chunks that do not change its pixels: a broken text or profile must not cost the picture."""
    kept, depth, ended = [PNG], 8, False
    for kind, body, whole in _chunks(data):
        # a lower-case first letter: the picture can be shown without this chunk
        if not kind[0] & 0x20:
            if not whole:
                raise DataError("broken or cut short: a checksum of the PNG does not fit")
            depth = body[8] if kind == b"IHDR" and len(body) > 8 else depth
        elif not (kind in (b"tRNS", b"acTL", b"fcTL", b"fdAT", b"eXIf") or _may_turn(kind, body)):
            continue
        elif not whole:
            if kind == b"eXIf" or _may_turn(kind, body):
                continue
            raise DataError("broken or cut short: a checksum of the PNG does not fit")
        kept.append(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
        if ended := kind == b"IEND":
            break
    if not ended:
        raise DataError("broken or cut short: the PNG has no end")
    return Prepared(b"".join(kept), deep=depth == 16)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    at = len(PNG)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if at + 12 + length > len(data):
            return
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        (crc,) = struct.unpack_from(">I", data, at + 8 + length)
        yield kind, body, crc == zlib.crc32(kind + body)
        at += 12 + length


def _may_turn(kind: bytes, body: bytes) -> bool:
    """Whether a text chunk may hold the picture's orientation, and is small."""
    name, _, rest = body.partition(b"\0")
    if len(body) > SMALL:
        return False
    if name in (b"Raw profile type exif", b"Raw profile type APP1"):
        if kind != b"zTXt":
            return kind == b"tEXt"
        try:
            inflate = zlib.decompressobj()
            inflate.decompress(rest[1:], SMALL)
        except zlib.error:
            return False
        return not inflate.unconsumed_tail
    return kind == b"iTXt" and name == b"XML:com.adobe.xmp" and rest[:1] == b"\0"


_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_WIDTH, _LENGTH, _BITS, _PHOTO, _STRIPS, _SAMPLES, _ROWS = 256, 257, 258, 262, 273, 277, 278
_KIND_OF_PAGE, _MAX_VALUE, _PLANAR, _TILE_WIDTH, _TILE_LENGTH, _SUB_PAGES = 254, 281, 284, 322, 323, 330
_FORMAT, _DNG, _COMPRESSION = 339, 50706, 259


def _tiff(data: bytes) -> Prepared:
    tags = _first_page(data)

    def one(tag: int, default: int) -> int:
        return tags[tag][1][0] if tags.get(tag, (0, []))[1] else default

    width, height, bits, photo = one(_WIDTH, 0), one(_LENGTH, 0), one(_BITS, 1), one(_PHOTO, 0)
    if _DNG in tags or photo in (32803, 34892) or (one(_KIND_OF_PAGE, 0) & 1 and _SUB_PAGES in tags):
        raise DataError(
            "a camera raw (DNG, NEF, ARW or alike), whose first page is a preview or undeveloped; develop it and save "
            "the picture as JPEG or PNG"
        )
    tile = one(_TILE_WIDTH, 0) * one(_TILE_LENGTH, 0)
    if tile > MAX_TILE and tile > 4 * width * height:
        raise DataError(f"a TIFF of {width} x {height} pixels with a tile far larger than itself; save it as PNG")
    sample = one(_FORMAT, 1)
    if sample == 2 and bits < 32:
        raise DataError(f"signed {bits}-bit pixels have no agreed range; save it with 8 or 16 unsigned bits")
    if sample == 3 and bits != 32:
        raise DataError(f"a TIFF of {bits}-bit floating-point pixels is not read; save it with 8 or 16 bits")
    if one(_PLANAR, 1) == 2 and one(_COMPRESSION, 1) == 1 and _STRIPS in tags:
        rows = max(1, min(one(_ROWS, height), height))
        if len(tags[_STRIPS][1]) < one(_SAMPLES, 1) * -(-height // rows):
            raise DataError("broken or cut short: the TIFF lacks some of its colour planes")
    inverted = photo == 0 and bits > 8
    if inverted:  # Pillow reads some of these layouts and inverts none
        order = "<" if data[:2] == b"II" else ">"
        at = tags[_PHOTO][0] if _PHOTO in tags else 0
        if not at:
            raise DataError("a TIFF that does not say whether zero is black or white; save it as PNG")
        data = data[:at] + struct.pack(order + "H", 1) + data[at + 2 :]
    white = one(_MAX_VALUE, 0)
    full = (1 << bits) - 1
    if not (sample == 1 and 8 < bits <= 16):
        known = None
    elif bits < 16:
        known = full
    else:
        known = white if 255 < white < full else None
    return Prepared(data, deep=bits == 16, inverted=inverted, white=known)


def _first_page(data: bytes) -> dict[int, tuple[int, list[int]]]:
    """For each tag of whole numbers: the offset of its value, and the first values. Empty where the file is broken."""
    order = "<" if data[:2] == b"II" else ">"
    tags: dict[int, tuple[int, list[int]]] = {}
    try:
        (at,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, at)
        for place in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack_from(order + "HHI", data, place)
            size = _SIZES.get(kind, 1)
            start = place + 8
            if values * size > 4:
                (start,) = struct.unpack_from(order + "I", data, start)
            letter = {1: "B", 3: "H", 4: "I", 13: "I"}.get(kind)
            values = min(values, max(0, len(data) - start) // size, 1 << 20)
            found = list(struct.unpack_from(f"{order}{values}{letter}", data, start)) if letter else []
            tags[tag] = (start, found)
    except struct.error:
        return {}
    return tags


def _check_bmp(data: bytes) -> None:
    """Refuse run-length coding with too few bytes for the pixels of the header: Pillow would fill them one by one."""
    if len(data) < 34 or struct.unpack_from("<I", data, 14)[0] < 40:
        return
    width, height = struct.unpack_from("<ii", data, 18)
    (compression,) = struct.unpack_from("<I", data, 30)
    if compression in (1, 2) and abs(width * height) > max(1 << 20, RLE_PIXELS * len(data)):
        raise DataError(
            f"a BMP of {width} x {height} pixels in {len(data)} bytes, far too few for them; save it as PNG"
        )
