"""Files as cameras, microscopes and editors write them: the same picture within rounding, or a refusal."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from densitywatch.data.decoding import images
from densitywatch.data.decoding.images import Picture, decode_image, decode_images
from densitywatch.errors import DataError

N = 28
REF = np.tile(np.round(np.linspace(0, 255, N)), (N, 1)).astype(np.uint8)
REF[: N // 2, : N // 4] = 255
WIDE = REF.astype(np.uint16) * 257
TWELVE = np.round(REF * (4095 / 255)).astype(np.uint16)


def tiff(
    data: bytes,
    bits: int,
    photo: int,
    *,
    sample: int = 1,
    order: str = "<",
    samples: int = 1,
    more: Sequence[tuple[int, int]] = (),
) -> bytes:
    """A TIFF of one strip; `more`: further tags of one whole number each."""
    tags = [
        (256, N),
        (257, N),
        (258, bits),
        (259, 1),
        (262, photo),
        (273, 0),
        (277, samples),
        (278, N),
        (279, len(data)),
    ]
    tags = sorted([*tags, (339, sample), *more])
    start = 8 + 2 + 12 * len(tags) + 4
    page = struct.pack(order + "H", len(tags))
    for tag, value in tags:
        page += struct.pack(order + "HHI", tag, 4, 1) + struct.pack(order + "I", start if tag == 273 else value)
    page = page.replace(
        struct.pack(order + "HHII", 262, 4, 1, photo), struct.pack(order + "HHIHH", 262, 3, 1, photo, 0)
    )
    return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8) + page + bytes(4) + data


def png(*extra: tuple[bytes, bytes], pixels: npt.NDArray[np.generic] = REF, broken: bool = False) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    whole = out.getvalue()
    chunks = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ broken)
        for kind, body in extra
    )
    return whole[:33] + chunks + whole[33:]


def packed_twelve() -> bytes:
    a, b = TWELVE.reshape(-1)[0::2].astype(int), TWELVE.reshape(-1)[1::2].astype(int)
    return np.stack([a >> 4, ((a & 15) << 4) | (b >> 8), b & 255], 1).astype(np.uint8).tobytes()


def saved(pixels: npt.NDArray[np.uint8], kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def bmp_with_alpha(alpha: int) -> bytes:
    pixels = np.dstack([REF, REF, REF, np.full_like(REF, alpha)])[::-1].tobytes()
    header = struct.pack("<IiiHHIIiiII", 108, N, N, 1, 32, 3, len(pixels), 2835, 2835, 0, 0)
    header += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(pixels), 0, 0, 14 + len(header)) + header + pixels


def grey(data: bytes) -> npt.NDArray[np.uint8]:
    return decode_image(data, size=N, channels=1, resize="crop")[0]


SAME: dict[str, Callable[[], bytes]] = {
    "12 bits, packed": lambda: tiff(packed_twelve(), 12, 1),
    "12 bits in 16, said": lambda: tiff(TWELVE.astype("<u2").tobytes(), 16, 1, more=[(281, 4095)]),
    "white is zero, 8 bits": lambda: tiff((255 - REF).tobytes(), 8, 0),
    "white is zero, 16 bits": lambda: tiff((65535 - WIDE).astype("<u2").tobytes(), 16, 0),
    "white is zero, big-endian": lambda: tiff((65535 - WIDE).astype(">u2").tobytes(), 16, 0, order=">"),
    "floats from 0 to 1": lambda: tiff((REF / 255).astype("<f4").tobytes(), 32, 1, sample=3),
    "white is zero, floats": lambda: tiff((1 - REF / 255).astype("<f4").tobytes(), 32, 0, sample=3),
    "32 bits": lambda: tiff(WIDE.astype("<i4").tobytes(), 32, 1, sample=2),
    "JPEG 2000": lambda: saved(REF, "JPEG2000"),
    "AVIF": lambda: saved(REF, "AVIF", quality=100),
    "BMP without alpha": lambda: bmp_with_alpha(0),
    "BMP with alpha": lambda: bmp_with_alpha(255),
    "text of 2 MiB": lambda: png((b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * (2 << 20)))),
    "profile of 2 MiB": lambda: png((b"iCCP", b"p\0\0" + zlib.compress(bytes(2 << 20)))),
    "profile of no known kind": lambda: png((b"iCCP", b"p\0\1" + zlib.compress(bytes(9)))),
    "text with a wrong checksum": lambda: png((b"tEXt", b"Comment\0hello"), broken=True),
    "dark, in 16 bits of 8": lambda: png(pixels=(REF // 8).astype(np.uint16) * 257),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_picture_comes_out(name: str) -> None:
    wanted = REF // 8 if name.startswith("dark") else REF
    assert np.abs(grey(SAME[name]()).astype(int) - wanted).max() <= (6 if name == "AVIF" else 1)


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "12 bits in 16": (lambda: tiff(TWELVE.astype("<u2").tobytes(), 16, 1), "never go beyond 4095"),
    "12 bits in a PNG of 16": (lambda: png(pixels=TWELVE), "never go beyond 4095"),
    "8 bits in 32": (lambda: tiff(REF.astype("<i4").tobytes(), 32, 1, sample=2), "never go beyond 255"),
    "colours of 12 bits in 16": (
        lambda: tiff(np.repeat(TWELVE[..., None], 3, 2).astype("<u2").tobytes(), 16, 2, samples=3),
        "colours of 16 bits that never go beyond a quarter",
    ),
    "signed": (lambda: tiff(WIDE.astype("<i2").tobytes(), 16, 1, sample=2), "signed 16-bit"),
    "half floats": (lambda: tiff((REF / 255).astype("<f2").tobytes(), 16, 1, sample=3), "16-bit floating-point"),
    "floats to 255": (lambda: tiff(REF.astype("<f4").tobytes(), 32, 1, sample=3), "no agreed range"),
    "32 bits, all of them": (lambda: tiff((REF.astype("<u4") * 16843009).tobytes(), 32, 1), "outside 0 to 65535"),
    "camera raw": (lambda: tiff(REF.tobytes(), 8, 1, more=[(254, 1), (330, 8)]), "camera raw"),
    "DNG": (lambda: tiff(REF.tobytes(), 8, 1, more=[(50706, 1025)]), "camera raw"),
    "HEIC of no picture": (lambda: struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(99), "HEIC"),
    "clear everywhere": (
        lambda: saved(np.dstack([REF, REF, REF, np.zeros_like(REF)]), "PNG"),
        "transparent everywhere",
    ),
    "colour planes left out": (
        lambda: tiff(REF.tobytes() * 3, 8, 2, samples=3, more=[(284, 2)]),
        "lacks some of its colour planes",
    ),
    "huge tile": (
        lambda: tiff(REF.tobytes(), 8, 1, more=[(322, 1 << 14), (323, 1 << 14), (324, 8)]),
        "a tile far larger",
    ),
    "run lengths of a KB for 49 megapixels": (
        lambda: (
            b"BM"
            + struct.pack("<IHHI", 1078, 0, 0, 1078)
            + struct.pack("<IiiHHIIiiII", 40, 7000, 7000, 1, 8, 1, 0, 0, 0, 0, 0)
            + bytes(1024)
            + b"\0\0" * 500
        ),
        "far too few",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_another_picture_or_too_expensive_is_refused_by_name(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(DataError, match=reason):
        grey(make())


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_was_cut_and_closed_is_refused_and_a_grey_one_is_not(progressive: bool) -> None:
    big = np.kron(REF, np.ones((8, 8), np.uint8))
    whole = saved(big, "JPEG", quality=95, progressive=progressive)
    assert np.abs(grey(whole).astype(int) - REF).mean() < 3
    if not progressive:
        with pytest.raises(DataError, match="ends before its picture does"):
            grey(whole[: len(whole) // 2] + b"\xff\xd9")
    assert set(np.unique(grey(saved(np.full_like(REF, 128), "JPEG", progressive=progressive)))) == {128}


def test_61_megapixels_are_read_and_the_limit_is_a_setting() -> None:
    out = io.BytesIO()
    Image.new("L", (9504, 6336), 90).save(out, "JPEG")
    deep = io.BytesIO()
    Image.fromarray(np.full((7000, 7000), 200 * 257, np.uint16)).save(deep, "PNG", compress_level=1)
    files = [out.getvalue(), deep.getvalue()]
    photo, microscope = decode_images(files, size=N, channels=1, resize="crop")
    assert isinstance(photo, Picture)
    assert isinstance(microscope, Picture)
    assert (photo.width, photo.height, set(np.unique(photo.pixels))) == (9504, 6336, {90})
    assert set(np.unique(microscope.pixels)) == {200}
    limited = decode_images(files, size=N, channels=1, resize="crop", max_pixels=50_000_000)
    assert "more than 50,000,000" in str(limited[0])


def test_a_plain_pgm_of_comments_is_read_at_once() -> None:
    text = b" ".join(str(value).encode() for value in REF.reshape(-1))
    assert np.array_equal(
        grey(b"P2\n" + b"#" * 500_000 + b"\n" + b"#\n" * 250_000 + b"28 28 255\n" + text + b"\n"), REF
    )


def test_a_file_that_kills_its_decoder_costs_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    whole = images.answers

    def answers(reader: str, facts: dict[str, object], *, blobs: list[bytes], together: bool):  # type: ignore[no-untyped-def]
        asked.append(len(blobs))
        for blob in blobs:
            if blob == b"deadly":
                raise images.ReaderDied("it made its reader crash")
            yield from whole(reader, facts, blobs=[blob])

    monkeypatch.setattr(images, "answers", answers)
    good = png()
    found = decode_images([good, good, b"deadly", good, b"", good], size=N, channels=1, resize="crop")
    assert [isinstance(item, Picture) for item in found] == [True, True, False, True, False, True]
    assert str(found[2]) == "it made its reader crash"
    assert str(found[4]) == "the file is empty"
    assert asked == [6, 1, 3]
