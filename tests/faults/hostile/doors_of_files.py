"""The doors for images and for what holds them: archives, Parquet files, whole batches, and a folder to train on."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import shutil
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from PIL import Image

from densitywatch.batches.score_batch import score_source
from densitywatch.data.decoding.images import FORMATS, Picture, decode_images
from densitywatch.data.folder import fetch_folder
from densitywatch.data.inputs.archives import members
from densitywatch.errors import DataError
from densitywatch.params import load_params
from tests.detector.standin import Brightness
from tests.faults.hostile.attempt import Door, Enter
from tests.faults.hostile.mutations import changed, files, names, png

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
LONGEST_REASON = 400


def picture(mode: str = "RGB", width: int = 40, height: int = 30) -> Image.Image:
    """A slope of colours with noise, so that every part of a coded file says something."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:height, 0:width]
    colours = np.stack([x * 5, y * 7, (x + y) * 3], 2) + rng.integers(0, 25, (height, width, 3))
    image = Image.fromarray(colours.clip(0, 255).astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.convert(mode)


def coded(mode: str, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture(mode).save(file, kind, **options)
    return file.getvalue()


def _with_exif(mode: str, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x0132] = 6, "2024:01:02 03:04:05"
    return coded(mode, kind, exif=exif)


@cache
def samples() -> dict[str, list[bytes]]:
    """Real files of every format that is read."""
    tiff = [coded("RGB", "TIFF", compression=kind) for kind in ("raw", "tiff_lzw", "packbits", "tiff_adobe_deflate")]
    frames = io.BytesIO()
    picture("P").save(frames, "GIF", save_all=True, append_images=[picture("P").rotate(90)])
    found = {
        "PNG": [coded(mode, "PNG") for mode in ("L", "RGB", "RGBA", "P", "I;16", "1")] + [_with_exif("RGB", "PNG")],
        "JPEG": [
            coded("L", "JPEG"),
            coded("CMYK", "JPEG"),
            coded("RGB", "JPEG", progressive=True),
            _with_exif("RGB", "JPEG"),
        ],
        "WEBP": [coded("RGB", "WEBP"), coded("RGBA", "WEBP", lossless=True)],
        "BMP": [coded(mode, "BMP") for mode in ("1", "L", "P", "RGB")],
        "GIF": [coded("P", "GIF"), frames.getvalue()],
        "TIFF": [*tiff, coded("1", "TIFF", compression="group4"), coded("I;16", "TIFF"), coded("F", "TIFF")],
        "PPM": [coded("L", "PPM"), coded("RGB", "PPM"), b"P3 2 2 255 1 2 3 4 5 6 7 8 9 10 11 12\n", b"P1 2 1 0 1\n"],
        "JPEG2000": [coded("RGB", "JPEG2000"), coded("L", "JPEG2000", irreversible=True)],
        "AVIF": [coded("RGB", "AVIF"), coded("RGBA", "AVIF")],
        "HEIF": [(HERE / "picture.heic").read_bytes()],
    }
    assert sorted(found) == sorted(FORMATS)
    return found


def _images(_: Path) -> Enter:
    def enter(case: bytes) -> None:
        (found,) = decode_images([case], size=28, channels=3, resize="crop")
        if isinstance(found, DataError):
            raise found
        assert isinstance(found, Picture)
        assert found.pixels.shape == (3, 28, 28)

    return enter


def _several(_: Path) -> Enter:
    """Files that are decoded together: one bad one must not cost its neighbours."""
    whole = samples()["PNG"][1]

    def enter(case: list[bytes]) -> None:
        given = [whole, *case, whole]
        found = decode_images(given, size=16, channels=1, resize="pad")
        assert len(found) == len(given)
        for end in (found[0], found[-1]):
            assert isinstance(end, Picture), end
        if all(isinstance(one, DataError) for one in found[1:-1]):
            raise DataError("every one of them is refused")

    return enter


def zipped(inside: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in inside.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            archive.writestr(info, data)
    return file.getvalue()


def tarred(inside: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, data in inside.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


@cache
def archives() -> dict[str, list[bytes]]:
    small = {"a/1.png": samples()["PNG"][0], "b/2.jpg": samples()["JPEG"][0], "labels.csv": b"file,label\n1.png,x\n"}
    zips = [zipped(small, kind) for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)]
    zips.append(zipped(small, zipfile.ZIP_LZMA))
    long = {f"{'long/' * 40}{name}": data for name, data in small.items()}
    tars = [tarred(small), tarred(long), tarred(long, tarfile.GNU_FORMAT), tarred(small, tarfile.USTAR_FORMAT)]
    packed = [pack(tars[0]) for pack in (gzip.compress, bz2.compress, lzma.compress)]
    return {"zip": zips, "tar": [*tars, *packed], "parquet": [parquet(kind) for kind in range(4)]}


def parquet(kind: int) -> bytes:
    """As Hugging Face's datasets, as plain columns, as a list of numbers, or compressed in several groups."""
    data = [samples()["PNG"][0], None, samples()["JPEG"][0]]
    if kind == 0:
        rows = pa.table({"image": [{"bytes": cell, "path": f"{i}.png"} for i, cell in enumerate(data)]})
        rows = rows.append_column("label", pa.array([0, 1, 0]))
        rows = rows.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": {"label": {"names": ["a", "b"]}}}})}
        )
    elif kind == 1:
        rows = pa.table({"name": ["a", "b", "c"], "image": pa.array(data, pa.binary()), "label": ["x", None, "y"]})
    elif kind == 2:
        rows = pa.table({"image": pa.array([list(cell) if cell else None for cell in data], pa.list_(pa.uint8()))})
    else:
        rows = pa.table({"image": pa.array(data * 20, pa.binary()), "path": [f"{i}.png" for i in range(60)]})
    file = io.BytesIO()
    pq.write_table(rows, file, compression="zstd" if kind == 3 else "snappy", row_group_size=16)
    return file.getvalue()


def _archive(ending: str) -> Callable[[Path], Enter]:
    def opened(folder: Path) -> Enter:
        path = folder / f"archive.{ending}"

        def enter(case: bytes) -> None:
            path.write_bytes(case)
            taken, reasons = 0, list[str]()
            with path.open("rb") as file:
                for entry in members(file, path.name, "", Counter(), dataset=True):
                    entry.path.encode()  # what is shown and kept is UTF-8
                    try:
                        entry.read()
                        taken += 1
                    except DataError as error:
                        reasons.append(str(error))
            assert all(0 < len(reason) < LONGEST_REASON for reason in reasons), reasons
            if not taken:
                raise DataError("no member can be read")

        return enter

    return opened


def _made(case: tuple[list[tuple[str, bytes]], int]) -> bytes:
    """A whole archive whose members have hostile names."""
    inside, kind = case
    file = io.BytesIO()
    if kind < 2:
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in inside:
                info = zipfile.ZipInfo("x")
                info.filename = name.encode("utf-8", "replace").decode() or "x"
                info.external_attr = (0o120777 << 16) if kind else 0
                try:
                    archive.writestr(info, data)
                except (UserWarning, ValueError):
                    continue
        return file.getvalue()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT, errors="replace") as tar:
        for name, data in inside:
            tar_info = tarfile.TarInfo(name)
            tar_info.type = (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE)[kind - 2]
            tar_info.linkname = name
            tar_info.size = len(data) if kind == 2 else 0
            tar.addfile(tar_info, io.BytesIO(data))
    return file.getvalue()


_inside = st.lists(st.tuples(names, st.one_of(st.binary(max_size=50), st.just(b"\x89PNG\r\n\x1a\n"))), max_size=6)
_zips = st.builds(_made, st.tuples(_inside, st.integers(0, 1)))
_tars = st.builds(_made, st.tuples(_inside, st.integers(2, 5)))


def _safe_name(name: str) -> str:
    """`name` as one that a file can have."""
    plain = name.replace("/", "%").replace("\0", "%").encode("utf-8", "replace").decode()[:80]
    return plain if plain.strip(".") else f"{plain}x"


def _lay_batch(folder: Path, case: list[tuple[str, bytes]]) -> int:
    """Write the files of a case; returns their number."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number, (name, data) in enumerate(case):
        path = folder / f"{number}{_safe_name(name)}"
        path.write_bytes(data)
    return len(case)


def _batch(folder: Path) -> Enter:
    """A whole batch: every file has its row, the report is written, and nothing else is."""
    whole = load_params(ROOT / "params.yaml")
    params = whole.model_copy(update={"detector": whole.detector.model_copy(update={"batch_size": 8})})
    results = folder / "results"

    def enter(case: list[tuple[str, bytes]]) -> None:
        _lay_batch(folder / "batch", case)
        shutil.rmtree(results, ignore_errors=True)
        summary = score_source("batch", params, folder, results, Brightness())
        rows = pd.read_parquet(results / "scores.parquet")
        assert len(rows) == summary["files"]
        assert set(rows.status) <= {"scored", "quarantined"}
        reasons = rows[rows.status == "quarantined"].reason
        assert reasons.str.len().between(1, LONGEST_REASON).all()
        assert not reasons.str.contains("\n").any()
        assert (results / "report.html").read_text(encoding="utf-8").count("<script>") == 1

    return enter


def _dataset(folder: Path) -> Enter:
    """`fetch` of a folder that holds anything: usable images are kept, the others named."""
    rows: list[dict[str, Any]] = []

    def enter(case: list[tuple[str, bytes]]) -> None:
        _lay_batch(folder / "photos", case)
        target = folder / "raw"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        fetch_folder(["photos"], target, folder)
        rows[:] = json.loads((target / "rejected.json").read_text(encoding="utf-8"))
        kept = pq.read_table(target / "images.parquet").num_rows
        assert kept > 0
        assert sorted(path.name for path in target.iterdir()) == ["entries.parquet", "images.parquet", "rejected.json"]

    return enter


def _some_file() -> st.SearchStrategy[tuple[str, bytes]]:
    kinds = [(f".{kind.lower()}", files(real)) for kind, real in samples().items()]
    kinds += [(f".{kind}", files(real)) for kind, real in archives().items()]
    return st.one_of(
        *(
            st.tuples(names.map(lambda name, ending=ending: f"{name[:40]}{ending}"), data)  # type: ignore[misc]
            for ending, data in kinds
        )
    )


def _with_a_picture(found: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    return [*found, ("whole.png", samples()["PNG"][1]), ("other.png", samples()["PNG"][2])]


def doors() -> list[Door]:
    real = samples()
    found = [
        Door(
            f"image: {kind}", files(real[kind]), _images, share=300 if kind in ("PNG", "JPEG", "TIFF") else 150, quick=8
        )
        for kind in FORMATS
    ]
    found[0] = replace(found[0], cases=st.one_of(png(real["PNG"]), png(real["PNG"]), files(real["PNG"])))
    every = [data for kind in real.values() for data in kind]
    found.append(
        Door(
            "images decoded together",
            st.lists(changed(every), min_size=2, max_size=8),
            _several,
            share=40,
            quick=2,
            seconds=60,
            inputs=len,
        )
    )
    held = archives()
    found += [
        Door("archive: zip", st.one_of(files(held["zip"]), files(held["zip"]), _zips), _archive("zip"), share=500),
        Door("archive: tar", st.one_of(files(held["tar"]), files(held["tar"]), _tars), _archive("tar"), share=500),
        Door("table of images: Parquet", files(held["parquet"]), _archive("parquet"), share=300, quick=8),
        Door(
            "batch to score",
            st.lists(_some_file(), min_size=1, max_size=12).map(_with_a_picture),
            _batch,
            share=40,
            quick=2,
            seconds=120,
            inputs=len,
        ),
        Door(
            "folder to train on",
            st.lists(_some_file(), min_size=1, max_size=12).map(_with_a_picture),
            _dataset,
            share=40,
            quick=2,
            seconds=120,
            inputs=len,
        ),
    ]
    return found
