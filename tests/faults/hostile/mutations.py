"""Inputs that somebody could send: real files with bytes, numbers, names and JSON values changed."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, 2**63 - 1)
"""Sizes, counts and offsets at which programs add or multiply wrongly."""
FORMS = ("<B", "<H", ">H", "<I", ">I", "<Q", ">Q")

FEW = st.sampled_from((1, 1, 1, 2, 3, 6))
"""Number of changes: most often one, so that the rest of a file is right and is looked at."""

Bytes = st.SearchStrategy[bytes]
Texts = st.SearchStrategy[str]


@st.composite
def changed(draw: Callable[..., Any], samples: Sequence[bytes]) -> bytes:
    """One of `samples` after some changes: a bit, a number, a part that is cut, doubled or taken from others.

    Half of the changes are near the start or the end, where headers and directories are.
    """
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(FEW)):
        if not data:
            break
        at = draw(st.one_of(st.integers(0, 64), st.integers(0, len(data) - 1), st.integers(-64, -1))) % len(data)
        how = draw(st.sampled_from("bbnnnncdiso"))
        if how == "b":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "n":
            form = draw(st.sampled_from(FORMS))
            size = struct.calcsize(form)
            number = draw(st.sampled_from(NUMBERS)) % (1 << 8 * size)
            data[at : at + size] = struct.pack(form, number)
        elif how == "c":
            del data[at:]
        elif how == "d":
            del data[at : at + draw(st.integers(1, 300))]
        elif how == "i":
            data[at:at] = draw(st.binary(max_size=24))
        elif how == "s":
            part = data[at : at + draw(st.integers(1, 200))]
            data[at:at] = part * draw(st.sampled_from((1, 2, 40)))
        else:
            other = draw(st.sampled_from(samples))
            start = draw(st.integers(0, max(0, len(other) - 1)))
            part = other[start : start + draw(st.integers(1, 400))]
            data[at : at + len(part)] = part
    return bytes(data)


def files(samples: Sequence[bytes]) -> Bytes:
    """Mostly `changed`, and some bytes that begin like one of `samples` or like nothing."""
    begun = st.builds(lambda whole, size, rest: whole[:size] + rest, st.sampled_from(samples), st.integers(0, 64), _any)
    return st.one_of(changed(samples), changed(samples), changed(samples), begun, _any)


_any = st.binary(max_size=300)

PNG = b"\x89PNG\r\n\x1a\n"


@st.composite
def png(draw: Callable[..., Any], samples: Sequence[bytes]) -> bytes:
    """A PNG with right checksums and wrong chunks: headers, pixels before they are packed, chunks that are added."""
    whole = draw(st.sampled_from(samples))
    parts: list[tuple[bytes, bytes]] = []
    at = len(PNG)
    while at < len(whole):
        (length,) = struct.unpack_from(">I", whole, at)
        parts.append((whole[at + 4 : at + 8], whole[at + 8 : at + 8 + length]))
        at += 12 + length
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(parts) - 1))
        kind, body = parts[place]
        how = draw(st.sampled_from("bbpad"))
        if how == "p" and kind == b"IDAT":
            try:
                body = zlib.compress(draw(changed([zlib.decompress(body)])))
            except zlib.error:
                body = draw(changed([body]))
            parts[place] = kind, body
        elif how == "a":
            kinds = (b"eXIf", b"tRNS", b"acTL", b"fcTL", b"iCCP", b"zTXt", b"PLTE", b"IHDR", b"IDAT", b"tEXt", b"sBIT")
            parts.insert(place, (draw(st.sampled_from(kinds)), draw(st.binary(max_size=60))))
        elif how == "d":
            parts.insert(place, parts[draw(st.integers(0, len(parts) - 1))])
        elif body:
            parts[place] = kind, draw(changed([body]))
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    ]
    return PNG + b"".join(chunks)


NAMES = (
    "../../outside/escaped",
    "/tmp/escaped",
    "..\\..\\outside\\escaped",
    "C:\\escaped.png",
    "a/../../../outside/escaped.png",
    "~/.ssh/authorized_keys",
    "",
    ".",
    "..",
    "/",
    "a" * 5000,
    "\0",
    "a\0b.png",
    "\n\r\x1b[31m",
    "=cmd|' /C calc'!A0",
    "<script>alert(1)</script>",
    "{{ 7 * 7 }}",
    "$(touch escaped)",
    "; touch escaped",
    "\ud800",
    "\u202egnp.exe",
    "_SUCCESS",
    ".made-by-densitywatch",
)
names: Texts = st.one_of(st.sampled_from(NAMES), st.text(max_size=30))
"""Names that lead out, run something, or cannot be written."""

PIECES = (
    *NAMES,
    "'",
    '"',
    ",",
    ";",
    "\t",
    "\n",
    "\r",
    "[" * 3000,
    "{" * 500,
    '{"a":' * 2000,
    "9" * 5000,
    "-1",
    "1e999",
    "NaN",
    "null",
    "true",
    "\\ud800",
    "\ufeff",
    "0x1",
    "&a [*a,*a]",
    "*b",
    "!!python/object/apply:os.system [touch escaped]",
    "!!binary x",
    "? ",
    ": ",
    "- ",
    "#",
    "|",
    "2024-13-45",
    "<<: ",
    "sep=;",
)


@st.composite
def text(draw: Callable[..., Any], samples: Sequence[str]) -> str:
    """One of `samples` in which pieces are put in, lines doubled or taken away, and parts replaced."""
    said = draw(st.sampled_from(samples))
    for _ in range(draw(FEW)):
        at = draw(st.integers(0, len(said)))
        how = draw(st.sampled_from("ipplwc"))
        if how == "i":
            said = said[:at] + draw(st.sampled_from(PIECES)) + said[at:]
        elif how == "p":
            end = min(len(said), at + draw(st.integers(0, 30)))
            said = said[:at] + draw(st.one_of(st.sampled_from(PIECES), st.text(max_size=20))) + said[end:]
        elif how == "l":
            lines = said.splitlines(keepends=True)
            if lines:
                line = draw(st.integers(0, len(lines) - 1))
                lines[line : line + 1] = lines[line : line + 1] * draw(st.sampled_from((0, 2, 30)))
            said = "".join(lines)
        elif how == "w":
            said = said.replace(" ", draw(st.sampled_from(("", "  ", "\t", "\u00a0", "\0"))), 5)
        else:
            said = said[:at]
    return said


def as_bytes(texts: Texts) -> Bytes:
    """Texts in the encodings that editors and spreadsheets save."""
    kinds = st.sampled_from(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"))
    return st.builds(
        lambda said, kind: said.encode(kind, "surrogatepass" if "utf" in kind else "replace"), texts, kinds
    )


values: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from((0, -1, 1, 3, 2**31, 2**63, 10**400, 1.5, -0.0, 1e308, float("inf"), float("nan"))),
    names,
    st.builds(list),  # a new one each time: the caller may change it
    st.builds(dict),
    st.lists(st.one_of(st.integers(-3, 300), names), max_size=4),
    st.dictionaries(st.text(max_size=8), st.integers(), max_size=3),
    st.builds(lambda: [[[[[[[[[[]]]]]]]]]]),
)
"""Values of JSON, also such that JSON cannot say."""


@st.composite
def value(draw: Callable[..., Any], samples: Sequence[Any]) -> Any:
    """One of `samples`, values of JSON, with entries replaced, taken away, renamed or added."""
    whole = json.loads(json.dumps(draw(st.sampled_from(samples))))
    for _ in range(draw(FEW)):
        place = whole
        while isinstance(place, dict | list) and place:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(min(len(place), 20))))
            if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
                place = place[key]
                continue
            how = draw(st.sampled_from("vvvdra"))
            if how == "d":
                del place[key]
            elif how == "r" and isinstance(place, dict):
                place[draw(names)] = place.pop(key)
            elif how == "a" and isinstance(place, list):
                place.append(draw(values))
            else:
                place[key] = draw(values)
            break
        else:
            return draw(values)
    return whole


def json_text(samples: Sequence[Any]) -> Texts:
    """`value` as JSON, and JSON that is broken as text."""
    said = st.builds(lambda found: json.dumps(found), value(samples))
    return st.one_of(said, said, text([json.dumps(sample) for sample in samples]))


@st.composite
def safetensors(draw: Callable[..., Any], samples: Sequence[bytes]) -> bytes:
    """A safetensors file whose header lies: about types, shapes, offsets, its own length or what is in the metadata."""
    sample = draw(st.sampled_from(samples))
    (length,) = struct.unpack("<Q", sample[:8])
    header, rest = json.loads(sample[8 : 8 + length]), sample[8 + length :]
    how = draw(st.sampled_from("hhmtl"))
    if how == "h":
        header = draw(value([header]))
    elif how == "t" and (tensors := [name for name in sorted(header) if name != "__metadata__"]):
        tensor = header[draw(st.sampled_from(tensors))]
        tensor["shape"] = draw(st.lists(st.sampled_from((0, 1, 2, 7, 2**31, 2**62)), max_size=5))
        if draw(st.booleans()):
            tensor["data_offsets"] = draw(st.tuples(st.sampled_from(NUMBERS), st.sampled_from(NUMBERS)).map(list))
        tensor["dtype"] = draw(st.sampled_from(("F32", "F64", "I64", "U8", "BOOL", "F8_E4M3", "F99", tensor["dtype"])))
    elif how == "m" and isinstance(header.get("__metadata__"), dict):
        for key, told in header["__metadata__"].items():
            try:
                header["__metadata__"][key] = json.dumps(draw(value([json.loads(told)])))
            except ValueError:
                header["__metadata__"][key] = draw(names)
    text_of_header = json.dumps(header).encode()
    said = draw(st.sampled_from(NUMBERS)) if how == "l" else len(text_of_header)
    return struct.pack("<Q", said) + text_of_header + rest
