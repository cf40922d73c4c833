"""Files made to hurt: each gets its row with a reason or a score, none stops the batch, none is lost."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import pickle
import re
import socket
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from densitywatch.batches.score_batch import score_source
from densitywatch.params import Params
from densitywatch.text import as_text
from tests.detector.standin import Brightness, png

SCORED = "scored"


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def grey(width: int = 28, height: int = 28, mode: str = "L") -> Image.Image:
    values = np.arange(width * height, dtype=np.uint8).reshape(height, width) % 90
    return Image.fromarray(values).convert(mode)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, rows: bytes, *before: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + body


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(grey(40, 20), "JPEG", exif=exif)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


whole = png()

NAMES = [
    b"new\nline.png",
    b"carriage\r\nreturn.png",
    b"tab\t.png",
    b"it's.png",
    b'"quoted".png',
    b"<script>alert(1)<.png",
    b"<img src=x onerror=alert(1)>.png",
    b"&amp;&lt;.png",
    b"%2e%2e%2f.png",
    b"caf\xe9 (not UTF-8).png",
    b"\xff\xfe.png",
    b"\xed\xa0\x80 surrogate.png",
    b"-rf.png",
    b".hidden.png",
    b" .png",
    "\U0001f600.png".encode(),
    "\u202egnp.exe".encode(),
    "zero\u200bwidth.png".encode(),
    "e\u0301.png".encode(),
    "\u00e9.png".encode(),
    b"x" * 251 + b".png",
    b"; rm -rf ~.png",
    b"$(reboot).png",
    b"`id`.png",
    b"*?[a].png",
    b"back\\slash.png",
    b"..\\..\\up.png",
    b"{{ 7 * 7 }}.png",
    b"{% raw %}.png",
    b"=cmd|' C calc'!A0.png",
    b"...png",
    b"con.png",
    b"\x1b[31mred.png",
    b"CASE.png",
    b"case.png",
    b"no extension",
    b"null%00.png",
    b"javascript:alert(1).png",
    b"a|b.png",
    b"#?.png",
    b"]]>.png",
    b"--><!--.png",
    b"_SUCCESS.png",
]


def contents() -> dict[str, tuple[bytes, str]]:
    """Bytes called .png, by what they are; each one's expected reason (`.`: either outcome is right)."""
    frames = [grey(), Image.fromarray(np.full((28, 28), 9, np.uint8)), grey()]
    return {
        "empty": (b"", "empty"),
        "one byte": (b"\x89", "not an image"),
        "text": (b"hello", "not an image"),
        "html": (b"<!doctype html><script>alert(1)</script>", "HTML or SVG"),
        "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>', "HTML or SVG"),
        "svg with entities": (b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa">]><svg>&a;</svg>', "HTML or SVG"),
        "random": (np.random.default_rng(1).bytes(5000), "not an image"),
        "pickle": (pickle.dumps(print), "not an image"),
        "elf": (b"\x7fELF" + bytes(200), "not an image"),
        "pdf": (b"%PDF-1.7\n", "a PDF, which is not read"),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n", "not an image"),
        "gzip": (gzip.compress(whole), "not an image"),
        "psd": (b"8BPS" + bytes(100), "a Photoshop document"),
        "icon": (saved(grey(mode="RGBA"), "ICO"), "an icon or a cursor"),
        "png cut in half": (whole[: len(whole) // 2], "broken or cut short"),
        "png cut after its header": (whole[:33], "the PNG has no end"),
        "png cut in its header": (whole[:20], "."),
        "png signature alone": (whole[:8], "."),
        "png with a flipped bit": (flipped(whole, len(whole) // 2), "broken or cut short"),
        "png with too little data": (png_of(28, 28, b"\x00" * 100), "broken or cut short"),
        "png of no size": (png_of(0, 0, b""), "."),
        "png that claims a trillion pixels": (png_of(1_000_000, 1_000_000, b""), "pixels"),
        "png bomb": (png_of(9000, 9000, bytes(9001 * 9000)), "pixels"),
        "png with a text bomb": (
            png_of(28, 28, bytes(29 * 28), chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(20 << 20)))),
            ".",
        ),
        "png with a colour profile bomb": (
            png_of(28, 28, bytes(29 * 28), chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(20 << 20)))),
            ".",
        ),
        "png with garbage behind": (whole + b"<script>" * 100, SCORED),
        "png and zip in one": (whole + b"PK\x05\x06" + bytes(18), SCORED),
        "animated png": (saved(frames[0], "PNG", save_all=True, append_images=frames[1:]), "animation"),
        "animated gif": (saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), "animation"),
        "animated webp": (saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]), "animation"),
        "still gif": (saved(grey(), "GIF"), SCORED),
        "gif cut short": (saved(grey(), "GIF")[:200], "not an image"),
        "tiff of several pages": (saved(frames[0], "TIFF", save_all=True, append_images=frames[1:]), "pages"),
        "tiff that refers to itself": (b"II*\x00\x08\x00\x00\x00\x00\x00\x08\x00\x00\x00", "."),
        "tiff with a directory out of the file": (b"II*\x00\xff\xff\xff\x7f", "."),
        "floating-point tiff": (saved(grey().convert("F"), "TIFF"), "floating-point"),
        "jpeg cut short": (saved(grey(), "JPEG")[:-300], "."),
        "jpeg with a broken exif": (saved(grey(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), "."),
        "jpeg in four inks": (saved(grey(mode="CMYK"), "JPEG"), SCORED),
        "bmp": (saved(grey(), "BMP"), SCORED),
        "bmp of a negative size": (
            saved(grey(), "BMP")[:18] + struct.pack("<ii", -5, -5) + saved(grey(), "BMP")[26:],
            ".",
        ),
        "ppm that lies about its size": (b"P5 100000 100000 255\n", "pixels"),
        "ppm of no number": (b"P5 x y z\n", "."),
        "palette": (saved(grey(mode="P"), "PNG"), SCORED),
        "one bit": (saved(grey(mode="1"), "PNG"), SCORED),
        "sixteen bits": (saved(Image.fromarray(np.full((28, 28), 40000, np.uint16)), "PNG"), SCORED),
        "fewer bits in sixteen": (
            saved(Image.fromarray(np.full((28, 28), 9000, np.uint16)), "PNG"),
            "fewer bits stored in more",
        ),
        "alpha": (saved(grey(mode="RGBA"), "PNG"), SCORED),
        "grey with alpha": (saved(grey(mode="LA"), "PNG"), SCORED),
        "one pixel": (saved(grey(1, 1), "PNG"), SCORED),
        "a thread": (saved(grey(1, 20000), "PNG"), SCORED),
        "a beam": (saved(grey(20000, 1), "PNG"), SCORED),
        "webp": (saved(grey(mode="RGB"), "WEBP"), SCORED),
        "black": (saved(Image.new("L", (28, 28)), "PNG"), SCORED),
        "white": (saved(Image.new("L", (28, 28), 255), "PNG"), SCORED),
        "cmyk tiff": (saved(grey(mode="CMYK"), "TIFF"), SCORED),
        "lab tiff": (saved(grey(mode="RGB").convert("LAB"), "TIFF"), "."),
        "signed 32-bit tiff": (saved(Image.fromarray(np.full((28, 28), -5, np.int32)), "TIFF"), "outside 0 to 65535"),
        "tiff with a lying strip": (saved(grey(), "TIFF").replace(struct.pack("<I", 784), b"\xff\xff\xff\x7f"), "."),
        "jpeg without a frame": (b"\xff\xd8\xff\xd9", "."),
        "jpeg with a thousand comments": (
            b"\xff\xd8" + b"\xff\xfe\x00\x04aa" * 1000 + saved(grey(), "JPEG")[2:],
            SCORED,
        ),
        "webp cut short": (saved(grey(mode="RGB"), "WEBP")[:60], "."),
        "riff that is no webp": (b"RIFF\x24\0\0\0WAVEfmt ", "not an image"),
        "utf-16 text": ("<svg>".encode("utf-16"), "."),
        "half a million newlines": (b"\n" * 500_000, "not an image"),
        "jpeg 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(80), "not an image"),
        "metafile": (b"\xd7\xcd\xc6\x9a" + bytes(60), "not an image"),
        **{f"rotated {i}": (rotated(i), SCORED) for i in range(1, 9)},
        "rotated 77": (rotated(77), SCORED),
    }


def links_and_specials(folder: Path) -> dict[str, str]:
    """Things in a folder that are no plain files; each one's expected reason."""
    outside = folder.parents[1] / "secret.png"
    outside.write_bytes(whole)
    (folder.parents[1] / "secrets").mkdir()
    (folder.parents[1] / "secrets" / "a.png").write_bytes(whole)
    (folder / "plain.png").write_bytes(whole)
    links: dict[str, tuple[Path | str, str]] = {
        "link in.png": ("plain.png", SCORED),
        "link out.png": (outside, "out of the source"),
        "link out by parts.png": ("../../secret.png", "out of the source"),
        "link to a file of the system": ("/etc/passwd", "out of the source"),
        "link to a device": ("/dev/zero", "out of the source"),
        "link to a folder outside": (folder.parents[1] / "secrets", "out of the source"),
        "link to the folder itself": (".", "link to a folder"),
        "link to nowhere.png": ("missing.png", "leads nowhere"),
        "link to itself.png": ("link to itself.png", "leads nowhere|Too many"),
    }
    for name, (target, _) in links.items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(folder / "s"))
    with (folder / "huge.png").open("wb") as file:
        file.truncate(200 << 20)  # sparse: takes no room
    deep = folder
    for _ in range(400):
        deep = deep / "dddd"
    os.makedirs(deep)  # noqa: PTH103
    (deep / "deep.png").write_bytes(whole)
    return {name: expected for name, (_, expected) in links.items()} | {
        "plain.png": SCORED,
        "pipe.png": "not a regular file",
        "s": "not a regular file|cannot be opened",
        "huge.png": "larger than 64 MiB",
        "/".join(["dddd"] * 400 + ["deep.png"]): SCORED,
    }


def zip_of(*members: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members:
            archive.writestr(member, data)
    return file.getvalue()


def tar_of(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE, target: str = "") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def zip_link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("link.png")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info


def encrypted() -> bytes:
    data = bytearray(zip_of(("a.png", whole)))
    data[6] |= 1
    data[data.rfind(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def parquet_of(*cells: bytes | None) -> bytes:
    file = io.BytesIO()
    pq.write_table(
        pa.table({"image": pa.array(cells, pa.binary()), "path": [f"{i}.png" for i in range(len(cells))]}), file
    )
    return file.getvalue()


def archives() -> dict[str, tuple[bytes, list[tuple[str, str]]]]:
    """Archives by name, with the rows that each should come to; `""` is the archive's own."""
    return {
        "up.zip": (
            zip_of(("../../up.png", whole), ("b.png", whole)),
            [("../../up.png", "leads out"), ("b.png", SCORED)],
        ),
        "absolute.zip": (zip_of(("/etc/a.png", whole)), [("/etc/a.png", "leads out")]),
        "drive.zip": (zip_of(("C:\\a.png", whole)), [("C:\\a.png", "leads out")]),
        "backslash.zip": (zip_of(("a\\..\\..\\b.png", whole)), [("a\\..\\..\\b.png", "leads out")]),
        "script.zip": (zip_of(("<script>.png", whole)), [("<script>.png", SCORED)]),
        "bomb.zip": (zip_of(("a.png", bytes(20 << 20)), ("b.png", whole)), [("a.png", "bomb"), ("b.png", SCORED)]),
        "larger.zip": (zip_of(("a.png", bytes(65 << 20))), [("a.png", "larger than")]),
        "link.zip": (zip_of((zip_link(), b"/etc/passwd")), [("link.png", "symbolic link")]),
        "secret.zip": (encrypted(), [("a.png", "encrypted")]),
        "damaged.zip": (flipped(zip_of(("a.png", whole)), 60), [("a.png", "cannot be unpacked")]),
        "cut.zip": (zip_of(("a.png", whole))[:100], [("", "the archive: broken")]),
        "empty.zip": (zip_of(), [("", "holds no files")]),
        "text.zip": (b"not a zip", [("", "the archive: broken")]),
        "nested.zip": (zip_of(("inner.zip", zip_of(("a.png", whole)))), [("inner.zip", "not an image")]),
        "up.tar": (tar_of(("../up.png", whole), ("b.png", whole)), [("../up.png", "leads out"), ("b.png", SCORED)]),
        "absolute.tar": (tar_of(("/a.png", whole)), [("/a.png", "leads out")]),
        "symlink.tar": (tar_of(("a.png", b""), kind=tarfile.SYMTYPE, target="/etc/passwd"), [("a.png", "link inside")]),
        "hardlink.tar": (
            tar_of(("a.png", b""), kind=tarfile.LNKTYPE, target="/etc/passwd"),
            [("a.png", "link inside")],
        ),
        "device.tar": (tar_of(("a.png", b""), kind=tarfile.CHRTYPE), [("a.png", "not a regular file")]),
        "pipe.tar": (tar_of(("a.png", b""), kind=tarfile.FIFOTYPE), [("a.png", "not a regular file")]),
        "cut.tar": (
            tar_of(("a.png", whole), ("b.png", whole))[:1800],
            [("a.png", SCORED), ("b.png", "."), ("", "archive")],
        ),
        "cut.tar.gz": (gzip.compress(tar_of(("a.png", whole)))[:-200], [("a.png", "break off"), ("", "break off")]),
        "bomb.tar.gz": (
            gzip.compress(tar_of(("a.png", bytes(20 << 20)), ("b.png", whole))),
            [("a.png", "bomb"), ("", "bomb")],
        ),
        "bomb.tar.bz2": (bz2.compress(tar_of(("a.png", bytes(20 << 20)))), [("a.png", "bomb"), ("", "bomb")]),
        "text.tar": (b"no tar" * 1000, [("", "the archive: broken")]),
        "empty.tar": (tar_of(), [("", "holds no files")]),
        "nulls.parquet": (
            parquet_of(whole, None, b"x"),
            [("0.png", SCORED), ("1.png", "no bytes"), ("2.png", "not an image")],
        ),
        "cut.parquet": (parquet_of(whole)[:-20], [("", "the archive: broken")]),
        "empty.parquet": (parquet_of(), [("", "holds no files")]),
        "text.parquet": (b"no parquet", [("", "the archive: broken")]),
    }


@pytest.fixture(scope="module")
def batch(params: Params, tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, list[tuple[str, str]], Path]:
    """One batch with everything in it, scored: the rows, what each path should come to, and the results' folder."""
    root = tmp_path_factory.mktemp("hostile")
    folder = root / "batch"
    folder.mkdir()
    expected: list[tuple[str, str]] = []
    for name in NAMES:
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:  # noqa: PTH118, PTH123
            file.write(whole)
        expected.append((as_text(os.fsdecode(name)), SCORED))
    (folder / "content").mkdir()
    for title, (data, reason) in contents().items():
        (folder / "content" / f"{title}.png").write_bytes(data)
        expected.append((f"content/{title}.png", reason))
    (folder / "special").mkdir()
    expected += [(f"special/{name}", reason) for name, reason in links_and_specials(folder / "special").items()]
    (folder / "archives").mkdir()
    for name, (data, found) in archives().items():
        (folder / "archives" / name).write_bytes(data)
        expected += [
            (f"archives/{name}/{member}" if member else f"archives/{name}", reason) for member, reason in found
        ]
    score_source("batch", params, root, root / "out", Brightness())
    return pd.read_parquet(root / "out" / "scores.parquet"), expected, root / "out"


def test_at_least_sixty_hostile_inputs_are_tried_and_none_is_lost_or_stops_the_batch(
    batch: tuple[pd.DataFrame, list[tuple[str, str]], Path],
) -> None:
    rows, expected, _ = batch
    assert len(expected) >= 170
    assert sorted(rows.path) == sorted(path for path, _ in expected)
    assert set(rows.status) == {"scored", "quarantined"}
    assert rows[rows.status == "quarantined"].reason.str.len().gt(0).all()


def test_each_hostile_input_comes_to_what_it_should(batch: tuple[pd.DataFrame, list[tuple[str, str]], Path]) -> None:
    rows, expected, _ = batch
    by_path = rows.set_index("path")
    wrong = []
    for path, reason in expected:
        row = by_path.loc[path]
        right = row.status == SCORED if reason == SCORED else reason == "." or re.search(reason, str(row.reason))
        if not right:
            wrong.append((path, reason, row.status, row.reason))
    assert not wrong, "\n".join(map(str, wrong))


def test_reasons_are_one_line_and_name_no_file_outside(batch: tuple[pd.DataFrame, list[tuple[str, str]], Path]) -> None:
    reasons = batch[0].reason.dropna()
    assert not reasons.str.contains("\n").any()
    assert reasons.str.len().max() < 300
    assert not reasons.str.contains("Traceback|/secret|passwd|0x").any()


def test_the_report_shows_hostile_names_as_text(batch: tuple[pd.DataFrame, list[tuple[str, str]], Path]) -> None:
    page = (batch[2] / "report.html").read_text()
    assert page.count("<script>") == 1
    assert "onerror=alert" not in re.sub(r"&lt;.*?&gt;", "", page)
    assert "\u202e" not in page.split("<main>")[1].split("data-name")[0]
    assert "49.png" not in page


def test_unpacking_a_bomb_takes_little_memory(params: Params, tmp_path: Path) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    many = zip_of(*((f"{i}.png", bytes(15 << 20)) for i in range(3)))
    (tmp_path / "many.zip").write_bytes(many)
    (tmp_path / "pax.tar.gz").write_bytes(gzip.compress(tar_of(("a" * 90, bytes(60 << 20)))))
    for name in ("many.zip", "pax.tar.gz"):
        score_source(name, params, tmp_path, tmp_path / "out" / name, Brightness())
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 400 << 10  # KiB; the test itself makes 200 MiB
