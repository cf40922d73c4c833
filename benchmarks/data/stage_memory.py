"""Peak memory of `fetch`, `prepare` and `validate`, over the number of images: it must not grow with it.

    python benchmarks/data/stage_memory.py [IMAGES ...]        after `make run`; 100,000 and 1,000,000

The images are those of the prepared splits, over and over, each with noise of its own, as PNG files in Parquet of
50,000 rows with a label each. Every stage of every size runs in its own process.
"""

from __future__ import annotations

import io
import os
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

from densitywatch import environment
from densitywatch.data.dataset import open_split
from densitywatch.params import load_params

SIZES = (100_000, 1_000_000)
SHARD = 50_000
GROUP = 5_000
SCHEMA = pa.schema([("path", pa.string()), ("image", pa.binary()), ("label", pa.string())])


def write_source(folder: Path, count: int) -> None:
    """`count` images as Parquet files in `folder`."""
    folder.mkdir()
    prepared = open_split(Path("data/prepared"), "train")
    rng = np.random.default_rng(0)
    for start in range(0, count, SHARD):
        with pq.ParquetWriter(folder / f"part-{start // SHARD:05d}.parquet", SCHEMA) as writer:
            for first in range(start, min(count, start + SHARD), GROUP):
                rows = []
                for i in range(first, min(count, start + SHARD, first + GROUP)):
                    k = i % len(prepared.images)
                    image = np.asarray(prepared.images[k]).astype(np.int16)
                    noisy = np.clip(image + rng.integers(-4, 5, image.shape), 0, 255).astype(np.uint8)
                    file = io.BytesIO()
                    Image.fromarray(noisy[0] if len(noisy) == 1 else noisy.transpose(1, 2, 0)).save(file, "PNG")
                    label = str(int(prepared.labels[k]))
                    rows.append({"path": f"{i:08d}.png", "image": file.getvalue(), "label": label})
                writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))


def run_stage(stage: str, root: Path) -> None:
    """In a process of its own: the stage, and then its peak of memory in MiB and its seconds."""
    from densitywatch.data import fetch, prepare
    from densitywatch.data.validation import validate

    environment.settle(os.environ)
    whole = load_params(Path("params.yaml"))
    data = whole.data.model_copy(update={"source": "folder", "address": str(root / "source"), "group": None})
    params = whole.model_copy(update={"data": data})
    started = time.perf_counter()
    {"fetch": fetch.fetch, "prepare": prepare.prepare, "validate": validate.validate}[stage](params, root)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{peak:.0f} {time.perf_counter() - started:.0f}")


def main(sizes: tuple[int, ...]) -> None:
    first: dict[str, float] = {}
    for count in sizes:
        with tempfile.TemporaryDirectory() as temporary:
            root = Path(temporary)
            write_source(root / "source", count)
            for stage in ("fetch", "prepare", "validate"):
                command = [sys.executable, __file__, "--one", stage, temporary]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - this file
                used, seconds = (float(word) for word in done.stdout.split()[-2:])
                ratio = used / first.setdefault(stage, used)
                print(
                    f"{count:>9,} images, {stage}: peak {used:,.0f} MiB, {ratio:.2f} times the first, {seconds:,.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        run_stage(sys.argv[2], Path(sys.argv[3]))
    else:
        main(tuple(int(word) for word in sys.argv[1:]) or SIZES)
