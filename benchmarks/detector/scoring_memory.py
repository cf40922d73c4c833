"""Peak memory of scoring a batch, over its size: it must not grow with the batch.

    python benchmarks/detector/scoring_memory.py [IMAGES ...]        10,000 and 1,000,000 where nothing is given

Every size runs in its own process: a Parquet file of PNG images goes through the code of `densitywatch score`
(reading, decoding, scoring, p-values, gallery, report). The detector is one Gaussian for each pixel, so that a million
images take minutes. A real detector adds its weights and one batch at any size.
"""

from __future__ import annotations

import io
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from densitywatch.batches.score_batch import score_source
from densitywatch.detector import conformal
from densitywatch.params import load_params

SIZES = (10_000, 1_000_000)
DISTINCT = 500
GROUP = 10_000


class SmallDetector:
    """The negative log-density of an image's pixels under one Gaussian each."""

    size, channels, resize = 28, 1, "crop"
    false_discovery_rate, false_alarm_rate = 0.1, 0.01
    class_names: tuple[str, ...] = ()
    digest = "small"

    def __init__(self) -> None:
        self.calibration = self.terms(np.stack([decoded(i) for i in range(DISTINCT)])).sum((1, 2))

    def terms(self, images: Any) -> Any:
        return 0.5 * ((images[:, 0].astype(np.float32) - 115.0) / 50.0) ** 2

    def score(self, images: Any) -> SimpleNamespace:
        score = self.terms(images).sum((1, 2)).astype(np.float64)
        p_value = conformal.p_values(self.calibration, score)
        return SimpleNamespace(
            score=score,
            p_value=p_value,
            bits_per_dim=score / 543.4,
            members={"nll": score},
            label=None,
            label_probability=None,
        )

    def surprise_map(self, images: Any) -> Any:
        return self.terms(images)

    def explain(self, scores: SimpleNamespace, i: int) -> str:
        return f"its negative log-likelihood is {scores.score[i]:.0f}"


def decoded(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return np.clip(rng.integers(30, 200) + rng.integers(-20, 21, (1, 28, 28)), 0, 255).astype(np.uint8)


def encoded(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(decoded(seed)[0]).save(file, "PNG")
    return file.getvalue()


def write_batch(path: Path, count: int) -> None:
    pictures = [encoded(i) for i in range(DISTINCT)]
    schema = pa.schema([("path", pa.string()), ("image", pa.binary())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, count, GROUP):
            rows = range(start, min(count, start + GROUP))
            columns = [[f"camera/{i:07d}.png" for i in rows], [pictures[i % DISTINCT] for i in rows]]
            writer.write_table(pa.table(columns, schema=schema))


def measure(count: int) -> None:
    """Prints the peak of this process's memory in MiB, and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        batch = Path(folder) / "batch.parquet"
        write_batch(batch, count)
        before, started = peak(), time.perf_counter()
        summary = score_source(str(batch), load_params(), Path(folder), Path(folder) / "results", SmallDetector())
        assert summary["scored"] == count, summary
        print(f"{peak():.0f} {before:.0f} {time.perf_counter() - started:.0f}")


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(sizes: tuple[int, ...]) -> None:
    first = None
    for count in sizes:
        command = [sys.executable, __file__, "--one", str(count)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - this very file
        used, before, seconds = (float(word) for word in done.stdout.split()[-3:])
        first = first or used
        print(
            f"{count:>9,} images: peak {used:,.0f} MiB ({before:,.0f} before scoring), {used / first:.2f} times the"
            f" first, {seconds:,.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        measure(int(sys.argv[2]))
    else:
        main(tuple(int(word) for word in sys.argv[1:]) or SIZES)
