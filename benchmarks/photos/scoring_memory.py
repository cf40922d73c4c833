"""Peak memory of scoring photographs of 256 pixels, over their number: it must not grow with the batch.

    python benchmarks/photos/scoring_memory.py [IMAGES ...]                1,000 and 10,000 where nothing is given
    python benchmarks/photos/scoring_memory.py --members own_place,own_whole 1000 10000
    python benchmarks/photos/scoring_memory.py --tiles                     pictures of 1,000 x 256 in tiles

Every number runs in its own process: a Parquet file of JPEG images goes through the code of `densitywatch score`
(reading, decoding, scoring, p-values, maps, gallery, report). The detector is fitted on 60 generated pictures.
"""

from __future__ import annotations

import argparse
import io
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from densitywatch.arrays import Arrays, Pixels
from densitywatch.batches.score_batch import score_source
from densitywatch.detector.calibrate import fit_members
from densitywatch.detector.detector import Detector
from densitywatch.detector.feature_cache import FeatureCache, Models
from densitywatch.detector.member import FittingData
from densitywatch.detector.member_table import find_member
from densitywatch.params import load_params

NUMBERS = (1_000, 10_000)
DISTINCT = 200
GROUP = 500
SIZE = 256


def picture(seed: int, width: int) -> Pixels:
    """A grey disc of noise on a darker ground, (1, SIZE, width)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :width]
    disc = np.hypot(y - SIZE / 2, x - width / 2) < SIZE / 3
    pixels = rng.uniform(60, 90) + 70 * disc + rng.normal(0, 8, (SIZE, width))
    return pixels.clip(0, 255).astype(np.uint8)[None]


def detector(members: list[str], width: int, tiles: int | None) -> Detector:
    """Fitted on 36 pictures, with 24 for tails and 39 for p-values."""
    parts, start = [], 0
    for count in (27, 9, 24, 39):
        parts.append(np.stack([picture(10_000 + start + i, width) for i in range(count)]))
        start += count
    train, sample, validation, calibration = (FeatureCache(part, Models(), size=SIZE) for part in parts)
    data = FittingData(
        train=train,
        sample=sample,
        all_train=parts[0],
        validation=validation,
        seed=1,
        declared=(),
        small_network_steps=1,
        declared_steps=1,
        tiles=tiles,
    )
    arrays: Arrays = fit_members([find_member(name) for name in members], data)
    facts = {
        "size": SIZE if width == SIZE else [SIZE, width],
        "reading": SIZE,
        "channels": 1,
        "resize": "stretch",
        "false_discovery_rate": 0.1,
        "false_alarm_rate": 0.05,
        "class_names": [],
        "density": None,
        "members": members,
    }
    bare = Detector(facts, arrays | {"calibration.score": np.zeros(1)}, Models())
    arrays["calibration.score"] = np.sort(bare.combine(bare.member_scores(calibration)))
    arrays["calibration.place_maximum"] = np.sort(bare.place_surprise(calibration).max((1, 2)))
    made = Detector(facts, arrays, Models())
    made.digest = "generated"  # type: ignore[attr-defined]
    return made


def write_batch(path: Path, count: int, width: int) -> None:
    """A Parquet file of `count` JPEG images, DISTINCT different ones in turn."""
    files = []
    for seed in range(min(DISTINCT, count)):
        out = io.BytesIO()
        Image.fromarray(picture(seed, width)[0]).save(out, "JPEG", quality=90)
        files.append(out.getvalue())
    schema = pa.schema([("path", pa.string()), ("image", pa.binary())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, count, GROUP):
            rows = range(start, min(count, start + GROUP))
            columns = [[f"camera/{i:07d}.jpg" for i in rows], [files[i % len(files)] for i in rows]]
            writer.write_table(pa.table(columns, schema=schema))


def measure(count: int, members: list[str], *, tiles: bool) -> None:
    """Prints the peak of this process's memory in MiB after the fit and after scoring, and the seconds of scoring."""
    width = 1000 if tiles else SIZE
    with tempfile.TemporaryDirectory() as folder:
        batch = Path(folder) / "batch.parquet"
        write_batch(batch, count, width)
        made = detector(members, width, SIZE if tiles else None)
        before, started = peak(), time.perf_counter()
        summary = score_source(str(batch), load_params(), Path(folder), Path(folder) / "results", made)
        assert summary["scored"] == count, summary
        print(f"{peak():.0f} {before:.0f} {time.perf_counter() - started:.0f}")


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int, default=list(NUMBERS))
    parser.add_argument("--members", default="own_place")
    parser.add_argument("--tiles", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        measure(asked.numbers[0], asked.members.split(","), tiles=asked.tiles)
        return
    first = None
    for count in asked.numbers:
        command = [sys.executable, __file__, "--one", str(count), "--members", asked.members]
        command += ["--tiles"] if asked.tiles else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - this very file
        used, before, seconds = (float(word) for word in done.stdout.split()[-3:])
        first = first or used
        print(
            f"{count:>9,} images: peak {used:,.0f} MiB ({before:,.0f} after the fit), {used / first:.2f} times the"
            f" first, {count / seconds:.1f} images/s",
            flush=True,
        )


if __name__ == "__main__":
    main()
