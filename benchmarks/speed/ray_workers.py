"""Images/s of `densitywatch score --engine ray` against the number of workers, each of one core.

    python benchmarks/speed/ray_workers.py [IMAGES [WORKERS ...]]        after `make run`; 4,000, and 1, 2, 4 ... cores

Scores a folder of PNG files, the images of the test split over and over, with models/detector: in one process with one
thread, and then on a Ray cluster of this machine with that many workers. Prints images/s of the wall clock and of the
workers' processor time. The clock runs from the first chunk of every worker to the last chunk of all: starting a worker
takes seconds, which a large batch does not feel. Every run must give the rows of the first one. The machine should do
nothing else meanwhile: the processor's time tells whether it did.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported
os.environ.setdefault("RAY_worker_niceness", "0")  # as the process that they are compared with

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from densitywatch import environment
from densitywatch.batches.chunks import RESULTS, score_in_chunks
from densitywatch.batches.on_ray import Batch, check_ray, score_on_ray
from densitywatch.batches.scorer import load_detector
from densitywatch.data.dataset import open_split
from densitywatch.data.inputs.source import entries
from densitywatch.errors import ParamsError
from densitywatch.params import load_params

CHUNK = 250
"""detector.batch_size of the default profile."""


def nothing(number: int) -> None:
    """No chunk has been published before."""


def processor_time(workers: int) -> float:
    """Seconds of the processor that the workers of this machine have used, with the processes that decode for them.

    Without workers: this process.
    """
    used = 0.0
    for process in psutil.process_iter() if workers else [psutil.Process()]:
        try:
            if not workers or "ChunkScorer" in " ".join([process.name(), *process.cmdline()]):
                for part in (process, *process.children()):
                    times = part.cpu_times()
                    used += times.user + times.system
        except psutil.Error:
            continue
    return used


def timed(steps: Iterator[tuple[int, int]], workers: int) -> tuple[float, float]:
    """Images/s after the first chunk of each worker, and seconds of their processor for an image; 0: this process."""
    started, before, files = 0.0, 0.0, 0
    now, used = started, before
    for number, (of_chunk, _) in enumerate(steps):
        now, used = time.perf_counter(), processor_time(workers)
        if number < max(1, workers):
            started, before = now, used
        else:
            files += of_chunk
    return files / (now - started), (used - before) / files


def rows(work: Path) -> pa.Table:
    """The rows of all chunks."""
    return pa.concat_tables([pq.read_table(path, columns=RESULTS.names) for path in sorted(work.iterdir())])


def main(images: int, counts: list[int]) -> None:
    environment.settle(os.environ)
    root = Path.cwd()
    params = load_params(root / "params.yaml")
    detector, _ = load_detector(None, params, root)
    test = open_split(root / "data/prepared", "test").images
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "batch"
        source.mkdir()
        for i in range(images):
            array = np.asarray(test[i % len(test)]).squeeze()
            Image.fromarray(array if array.ndim == 2 else array.transpose(1, 2, 0)).save(source / f"{i:07d}.png")
        work = Path(temporary) / "one process"
        work.mkdir()
        found = entries(str(source))
        steps = score_in_chunks(found, detector, work, size=CHUNK, threshold=0.1, published=nothing)
        rate, used = timed(steps, 0)
        expected = rows(work)
        print(
            f"one process, one thread: {rate:.0f} images/s; {1000 * used:.1f} ms of the core for an image", flush=True
        )
        first = None
        for count in counts:
            work = Path(temporary) / f"{count} workers"
            work.mkdir()
            batch = Batch(str(source), False, None, CHUNK, work, nothing)
            steps = score_on_ray(batch, detector, threshold=0.1, workers=count, skipped=Counter())
            rate, used = timed(steps, count)
            assert rows(work).equals(expected), f"{count} workers gave other rows"
            first = first or rate
            print(
                f"{count} workers: {rate:.0f} images/s, {rate / first:.2f} times those of {counts[0]};"
                f" {1000 * used:.1f} ms of a worker's core for an image; the same rows",
                flush=True,
            )


if __name__ == "__main__":
    cores = os.cpu_count() or 1
    doubling = [2**i for i in range(cores.bit_length()) if 2**i <= cores]
    try:
        check_ray()
    except ParamsError as error:
        print(f"not measured: {error}")
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 4000, [int(each) for each in sys.argv[2:]] or doubling)
