"""Archives that are damaged, or built to take time and memory: what they still give is given, and the rest is said."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densitywatch.data.inputs.archives import archive_kind, members
from densitywatch.data.inputs.entries import most_members
from densitywatch.errors import DataError

CONTENT = {f"{i}.png": random.Random(i).randbytes(700 + i) for i in range(10)}
SECONDS = 20.0
"""CPU time within which the dear archives are read or refused, on a slow and busy machine."""


def tar(content: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def zipped(content: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return file.getvalue()


def parquet(table: pa.Table, **options: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def read(data: bytes, name: str, skipped: Counter[str] | None = None) -> dict[str, bytes | str]:
    """path -> bytes, or the reason why there are none."""
    found: dict[str, bytes | str] = {}
    for entry in members(io.BytesIO(data), name, "", skipped):
        path = entry.path
        while path in found:
            path += " again"
        try:
            found[path] = entry.read()
        except DataError as error:
            found[path] = str(error)
    return found


def flipped(data: bytes, at: int, bit: int = 1) -> bytes:
    return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]


def header(name: str, size: int, kind: bytes = b"0") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


HEADERS = [sum(512 + len(data) + -len(data) % 512 for data in list(CONTENT.values())[:i]) for i in range(11)]
WHOLE = tar(CONTENT, tarfile.USTAR_FORMAT)
PACKED = gzip.compress(WHOLE)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_a_whole_tar_of_every_form_gives_what_was_put_in(form: int, pack: object) -> None:
    content = CONTENT | {"ordner/" + "größe" * 17 + "/a.png": b"long", "leer.png": b""}
    assert read(pack(tar(content, form)), "x.tar") == content  # type: ignore[operator]


def test_tars_and_gzips_one_behind_the_other_are_read_to_the_end() -> None:
    assert read(tar({"a.png": b"a"}) + tar({"b.png": b"b"}), "x.tar") == {"a.png": b"a", "b.png": b"b"}
    half = len(WHOLE) // 2
    assert read(gzip.compress(WHOLE[:half]) + gzip.compress(WHOLE[half:]), "x.tgz") == CONTENT


DAMAGED = {
    **{f"a flipped bit in header {i}": (flipped(WHOLE, HEADERS[i] + 20), 9) for i in (1, 4, 9)},
    "a flipped bit in the first header": (flipped(WHOLE, 3), 9),
    "a flipped bit in a size": (flipped(WHOLE, HEADERS[5] + 133), 9),
    "a flipped bit in a checksum": (flipped(WHOLE, HEADERS[5] + 150), 9),
    "a header of zeros": (WHOLE[: HEADERS[3]] + bytes(512) + WHOLE[HEADERS[3] + 512 :], 9),
    "cut inside a header": (WHOLE[: HEADERS[6] + 100], 6),
    "cut between two members": (WHOLE[: HEADERS[6]], 6),
    "cut inside a member": (WHOLE[: HEADERS[6] + 700], 6),
    "cut before the mark of the end": (WHOLE[: HEADERS[10]], 10),
    "a flipped bit in a gzip": (flipped(PACKED, len(PACKED) // 2), 0),
    "a wrong checksum of a gzip": (flipped(PACKED, len(PACKED) - 8), 10),
    "a wrong length of a gzip": (flipped(PACKED, len(PACKED) - 2), 10),
    "a gzip cut short": (PACKED[: len(PACKED) // 2], 3),
    "a gzip without its end": (PACKED[:-8], 10),
    "other bytes behind a gzip": (PACKED + b"more", 10),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_tar_gives_the_members_that_are_whole_and_a_row_that_says_so(case: str) -> None:
    data, whole = DAMAGED[case]
    found = read(data, "x.tar")
    reason = found.pop("x.tar")
    assert str(reason).startswith("the archive: ")
    given = {name: content for name, content in found.items() if isinstance(content, bytes)}
    assert len([name for name in given if given[name] == CONTENT.get(name)]) >= whole
    assert set(found) <= set(CONTENT)


def test_no_flipped_bit_of_a_tar_header_loses_a_member_without_a_word() -> None:
    rng = random.Random(0)
    for _ in range(300):
        at = rng.choice(HEADERS[:10]) + rng.randrange(512)
        found = read(flipped(WHOLE, at, 1 << rng.randrange(8)), "x.tar")
        assert "x.tar" in found or found == CONTENT


def test_one_bad_name_or_member_of_a_tar_does_not_cost_the_others() -> None:
    def pax(records: bytes) -> bytes:
        return header("x", len(records), b"x") + records + bytes(-len(records) % 512)

    parts = {
        "pax of nonsense": pax(b"99999 path=a\n"),
        "pax with a name of no UTF-8": pax(b"14 path=\xff.png\n"[:0] + b"14 path=\xff.png\n"),
        "pax with no number as its size": pax(b"13 size=nine\n"),
        "a name of a megabyte": header("x", 2 << 20, b"L") + bytes(2 << 20),
    }
    for what, part in parts.items():
        found = read(part + tar({"a.png": b"a", "b.png": b"b"}, tarfile.USTAR_FORMAT), "x.tar")
        assert found["b.png"] == b"b", what
        assert len(found) == 2, what
    assert read(tar({"../a.png": b"a", "b.png": b"b"}), "x.tar")["b.png"] == b"b"


def test_one_bad_name_or_member_of_a_zip_does_not_cost_the_others() -> None:
    data = zipped(CONTENT)
    named = data.replace(b"3.png", b"3\xff\xfeng")
    utf8 = bytearray(named)
    at = named.rindex(b"3\xff\xfeng") - 46
    utf8[at + 9] |= 0x08  # says that the name is UTF-8
    for changed in (
        bytes(utf8),
        flipped(data, data.index(b"3.png") + 100),
        flipped(data, data.rindex(b"3.png") - 30),  # its checksum in the directory
        flipped(data, data.rindex(b"3.png") - 4),  # its place
        flipped(data, data.rindex(b"3.png") - 26, 64),  # its packed size
    ):
        found = read(changed, "x.zip")
        others = {name: content for name, content in found.items() if "3" not in name}
        assert others == {name: content for name, content in CONTENT.items() if name != "3.png"}
        assert len(found) == 10


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_with_the_same_name_are_separate_rows() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", b"1")
        archive.writestr("a.png", b"2")
    assert read(file.getvalue(), "x.zip") == {"a.png": b"1", "a.png again": b"2"}
    assert read(tar({"a.png": b"1"})[:1024] + tar({"a.png": b"2"}), "x.tar") == {"a.png": b"1", "a.png again": b"2"}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_of_every_method_gives_what_was_put_in_and_a_damaged_one_says_so(method: int) -> None:
    data = zipped(CONTENT, method)
    assert read(data, "x.zip") == CONTENT
    assert read(b"#!/bin/sh\n" + data, "x.zip") == CONTENT
    for end in (len(data) - 10, len(data) // 2, data.index(b"PK\x01\x02") + 60):
        (reason,) = read(data[:end], "x.zip").values()
        assert "cut short" in str(reason)
    # the directory without its last members
    start = data.rindex(b"PK\x05\x06")
    changed = flipped(data, data.rindex(b"PK\x01\x02"))
    assert start < len(changed)
    assert "directory is damaged after 9 members" in str(read(changed, "x.zip")["x.zip"])


def test_a_packed_member_whose_own_header_lies_beyond_the_end_is_refused() -> None:
    """LZMA has a header of its own, which comes after a name that is said to be longer than the file."""
    whole = bytearray(zipped({"a.png": b"x" * 50}, zipfile.ZIP_LZMA))
    whole[26:28] = b"\xff\xff"
    found = read(bytes(whole), "a.zip")
    assert str(found["a.png"]).startswith("cannot be unpacked")


def test_names_that_a_mac_or_an_old_program_wrote_are_read() -> None:
    data = zipped({"aaaa.png": b"a"})
    assert list(read(data.replace(b"aaaa", "ßü".encode()), "x.zip")) == ["ßü.png"]
    assert list(read(data.replace(b"aaaa", "ßüßü".encode("cp437")), "x.zip")) == ["ßüßü.png"]


def test_a_large_zip_of_the_64_bit_kind_is_read() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in CONTENT.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(data)
    assert read(file.getvalue(), "x.zip") == CONTENT


def test_parquet_cut_short_or_with_a_wrong_end_says_so() -> None:
    table = pa.table({"image": list(CONTENT.values()), "path": list(CONTENT)})
    data = parquet(
        table,
        compression="none",
        use_dictionary=False,
        row_group_size=2,
        write_page_checksum=True,
        write_statistics=False,
    )
    assert read(data, "x.parquet") == CONTENT
    for broken in (data[: len(data) // 2], data[:-1] + b"X", data[:-8] + b"\xff\xff\xff\x7fPAR1", data[-200:]):
        (reason,) = read(broken, "x.parquet").values()
        assert str(reason).startswith("the archive: ")
    found = read(flipped(data, data.index(CONTENT["7.png"]) + 5), "x.parquet")
    assert "x.parquet" in found
    assert all(found[name] == CONTENT[name] for name in found if name != "x.parquet")


def overlapping(count: int, size: int) -> bytes:
    """A zip of `count` members that all unpack the same bytes."""
    one = zipped({"a.png": bytes(size)})
    at, end = one.index(b"PK\x01\x02"), one.rindex(b"PK\x05\x06")
    directory = one[at:end] * count
    return one[:at] + directory + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count & 0xFFFF, count & 0xFFFF,
                                              len(directory), at, 0)  # fmt: skip


def declared_huge() -> bytes:
    return header("a.png", 1 << 60) + bytes(9 << 10)


def crafted_pax() -> bytes:
    records = b"1" * 100_000 + b" " * 900_000
    return gzip.compress(header("x", len(records), b"x") + records + bytes(-len(records) % 512) + tar({"b.png": b"b"}))


DEAR_TARS_AND_ZIPS = {
    "a tar whose member claims an exabyte": ("x.tar", declared_huge),
    "the same, packed": ("x.tar.gz", lambda: gzip.compress(declared_huge())),
    "a crafted pax header": ("x.tar.gz", crafted_pax),
    "300 overlapping members": ("x.zip", lambda: overlapping(300, 15 << 20)),
    "200,000 overlapping members": ("x.zip", lambda: overlapping(200_000, 15 << 20)),
    "members that are no bomb alone": ("x.zip", lambda: zipped({f"{i}.png": bytes(15 << 20) for i in range(30)})),
    "xz that asks for gigabytes": (
        "x.tar.xz",
        lambda: (
            lzma.compress(tar({"a.png": bytes(1 << 20)}), filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}])
            if os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") > 16 << 30
            else lzma.compress(bytes(100 << 20))
        ),
    ),
    "many gzip bombs": ("x.tgz", lambda: gzip.compress(bytes(4 << 20)) * 200),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", DEAR_TARS_AND_ZIPS)
def test_an_archive_built_to_take_time_is_refused_within_seconds(case: str) -> None:
    name, make = DEAR_TARS_AND_ZIPS[case]
    data = make()
    started = time.process_time()
    found = read(data, name)
    assert time.process_time() - started < SECONDS
    assert [reason for reason in found.values() if isinstance(reason, str)]
    given = sum(len(content) for content in found.values() if isinstance(content, bytes))
    assert given <= (16 << 20) + 200 * len(data)


def one_value(value: bytes | str, rows: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))


def written_in_parts(column: pa.Array, parts: int) -> bytes:
    file = io.BytesIO()
    table = pa.table({"image": column})
    with pq.ParquetWriter(file, table.schema, compression="zstd", use_dictionary=False) as writer:
        for _ in range(parts):
            writer.write_table(table)
    return file.getvalue()


DEAR_PARQUET = {
    "a dictionary of one cell of 60 MiB": lambda: parquet(
        pa.table({"image": one_value(bytes(60 << 20), 5000)}), compression="zstd", store_schema=False,
        dictionary_pagesize_limit=1 << 30,
    ),
    "the same in a struct": lambda: parquet(
        pa.table({"image": pa.array([{"bytes": bytes(40 << 20), "path": "a"}] * 8)}), compression="zstd",
        dictionary_pagesize_limit=1 << 30,
    ),
    "pages of zeros": lambda: written_in_parts(pa.array([bytes(30 << 20)]), 40),
    "one cell of 256 MiB": lambda: parquet(pa.table({"image": pa.array([bytes(256 << 20)])}), compression="zstd"),
    "names of 100 MiB": lambda: parquet(
        pa.table({"image": [b""] * 5000, "path": one_value("a" * (100 << 20), 5000)}), compression="zstd",
        store_schema=False, dictionary_pagesize_limit=1 << 30,
    ),
    "a hundred million rows": lambda: parquet(
        pa.table({"image": pa.DictionaryArray.from_arrays(pa.nulls(100_000_000, pa.int8()), pa.array([b"x"]))}),
        compression="zstd",
    ),
}  # fmt: skip

MEASURED = """
import resource, sys, time
from densitywatch.data.inputs.archives import members
from densitywatch.errors import DataError
rows = reasons = 0
with open(sys.argv[1], "rb") as file:
    for entry in members(file, sys.argv[1], ""):
        rows += 1
        try:
            entry.read()
        except DataError as error:
            reasons += 1
from densitywatch.data.decoding import sandbox
sandbox.close()
use = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
own = use[0].ru_maxrss  # where /proc says it, without what the process that started this one had
if sys.platform == "linux":
    own = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(rows, reasons, max(own, use[1].ru_maxrss) >> 10, sum(u.ru_utime + u.ru_stime for u in use))
"""


@pytest.mark.slow
@pytest.mark.parametrize("case", DEAR_PARQUET)
def test_parquet_built_to_take_memory_is_refused_within_limits(case: str, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(DEAR_PARQUET[case]())
    assert path.stat().st_size < 1 << 20
    done = subprocess.run([sys.executable, "-c", MEASURED, path], stdout=subprocess.PIPE, text=True, check=True)
    rows, reasons, peak, seconds = done.stdout.split()
    assert int(rows) >= 1
    assert int(reasons) >= 1 or case.startswith("names")
    assert int(rows) <= most_members(path.stat().st_size)
    assert int(peak) < 1400  # MiB
    assert float(seconds) < SECONDS + 10


PNG = b"\x89PNG" + bytes(60)


@pytest.mark.parametrize(
    ("table", "names"),
    [
        (pa.table({"Image": [PNG] * 3}), ["row 0", "row 1", "row 2"]),
        (pa.table({"image": pa.array([PNG] * 3).dictionary_encode(), "Path": ["a", "b", "c"]}), ["a", "b", "c"]),
        (pa.table({"image": pa.array([[PNG], [PNG, PNG]]), "key": ["a", "b"]}), ["a", "b [0]", "b [1]"]),
        (pa.table({"image": pa.array([[{"bytes": PNG, "path": "x"}]] * 2)}), ["x", "x again"]),
        (pa.table({"image": pa.array([list(PNG)] * 2, pa.list_(pa.uint8()))}), ["row 0", "row 1"]),
        (pa.table({"image": pa.array([PNG] * 2, pa.binary(64))}), ["row 0", "row 1"]),
        (pa.table({"image": pa.array([PNG] * 2, pa.large_binary()), "id": [7, 8]}), ["7", "8"]),
    ],
    ids=["capital", "dictionary", "list", "list of structs", "list of numbers", "fixed size", "large"],
)
def test_parquet_columns_of_every_kind_that_holds_images_are_read(table: pa.Table, names: list[str]) -> None:
    assert read(parquet(table), "x.pq") == dict.fromkeys(names, PNG)


def test_parquet_names_that_are_no_text_and_cells_without_bytes_cost_only_themselves() -> None:
    names = pa.array([b"\xff.png", b"b.png", None]).view(pa.string())
    table = pa.table({"image": pa.array([PNG, None, PNG]), "path": names})
    assert read(parquet(table), "x.parquet") == {"\\xff.png": PNG, "b.png": "the cell holds no bytes", "row 2": PNG}


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_parquet_inside_an_archive_gives_its_rows(name: str) -> None:
    content = {"a.png": b"a", "in/b.parquet": parquet(pa.table({"image": [PNG] * 2})), "c.parquet": b"no parquet"}
    found = read(zipped(content) if name == "x.zip" else tar(content), name)
    assert list(found) == ["a.png", "in/b.parquet/row 0", "in/b.parquet/row 1", "c.parquet"]
    assert found["in/b.parquet/row 1"] == PNG
    assert str(found["c.parquet"]).startswith("the archive: broken")


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_what_tools_leave_behind_in_an_archive_is_skipped_and_counted(name: str) -> None:
    samples = {f"{i:03d}.{end}": b"x" for i in range(3) for end in ("cls", "json", "png", "txt")}
    junk = {"__MACOSX/._000.png": b"x", ".DS_Store": b"x", "@eaDir/000.png/a.jpg": b"x", "labels.csv": b"x"}
    content = junk | samples | {"notes.txt": b"x"}
    skipped: Counter[str] = Counter()
    found = read(zipped(content) if name == "x.zip" else tar(content), name, skipped)
    assert sorted(found) == ["000.png", "001.png", "002.png", "notes.txt"]
    assert skipped.total() == len(content) - 4
    assert skipped["*.json next to a picture"] == 3
    only = {".DS_Store": b"x"}
    assert read(zipped(only) if name == "x.zip" else tar(only), name, skipped) == {}


def test_the_kind_of_an_archive_is_told_by_its_name_without_a_query() -> None:
    kinds = {"a.ZIP": "zip", "a.tar.gz": "tar", "a.tgz": "tar", "hf.parquet?download=true": "parquet",
             "a.parq": "parquet", "a.pq": "parquet", "a.zip?X-Amz=/b/c.png": "zip",
             "a.png": None, "zip": None, "a.zip.png": None}  # fmt: skip
    assert {name: archive_kind(name) for name in kinds} == kinds


def test_a_checksum_of_a_member_is_compared(tmp_path: Path) -> None:
    data = zipped({"a.png": b"abcabc"}, zipfile.ZIP_STORED)
    found = read(data.replace(b"abcabc", b"abcabd"), "x.zip")
    assert found == {"a.png": "cannot be unpacked (its checksum does not fit)"}
    assert zlib.crc32(b"abcabc") != zlib.crc32(b"abcabd")


def test_a_parquet_file_is_read_the_same_after_one_that_was_refused(tmp_path: Path) -> None:
    empty, one = parquet(pa.table({"image": pa.array([], pa.binary())})), parquet(pa.table({"image": [PNG]}))
    for number, data in enumerate([one[:-20], empty, one, one[:-20], empty]):
        (tmp_path / f"{number}.parquet").write_bytes(data)
    found = []
    for path in sorted(tmp_path.iterdir()):
        with path.open("rb") as file:
            for entry in members(file, path.name, ""):
                try:
                    found.append(entry.read())
                except DataError as error:
                    found.append(str(error).encode()[:20])
    broken, nothing = b"the archive: broken ", b"the archive holds no"
    assert found == [broken, nothing, PNG, broken, nothing]
