"""`score --engine ray`: the chunks of chunks.py, scored by the machines of a Ray cluster with Ray Data.

    this machine      list the source, cut it into chunks, read archives     tasks: one task
    any machine       read, decode and score a chunk                         ChunkScorer: one process for each core
    this machine      write work/NNNNNNNN.parquet                            score_on_ray

A chunk holds the same files as in one process, so its rows are the same. All that looks at the whole batch, as the
flags do, is done afterwards by the same code from the same chunk files. Ray Data holds the first task back when chunks
that wait fill a good part of its memory. When a machine is lost, Ray has its chunks scored again by others.

Errors that a user should see travel as text in the column `failed`: Ray would wrap an exception in its own.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from densitywatch.batches.chunks import RESULTS, chunk_file, chunk_table, in_chunks, load_ahead, read_chunk
from densitywatch.batches.far_files import PACKED, pack, unpack
from densitywatch.batches.scorer import Scorer
from densitywatch.data.inputs.source import entries
from densitywatch.errors import DataError, DensitywatchError, ParamsError
from densitywatch.text import one_line

TASK = pa.schema(
    [
        ("number", pa.int64()),
        ("entries", pa.large_list(PACKED)),
        ("waiting", pa.large_binary()),
        ("published", pa.large_binary()),
        ("skipped", pa.string()),
        ("failed", pa.string()),
    ]
)
"""One row: a chunk to be scored with what earlier jobs know of it, or the end of the source, or why it cannot be read.
"""
DONE = pa.schema(
    [
        ("number", pa.int64()),
        ("files", pa.int64()),
        ("scored", pa.int64()),
        ("chunk", pa.large_binary()),
        ("skipped", pa.string()),
        ("failed", pa.string()),
    ]
)
"""One row: the chunk's file, null where the one that waits is still good; or what TASK said of the source."""
MOST_BYTES = 1 << 30
"""Bytes of the archive members of one chunk, at most: they travel together."""
SAME = ("densitywatch", "numpy", "pillow", "pyarrow", "scikit-learn", "scipy", "torch", "torchvision")
"""Packages whose versions must be the same on all machines, or the rows would not be."""


@dataclass(frozen=True)
class Batch:
    """What is read, and in which pieces."""

    source: str
    follow_links: bool
    limit: int | None
    size: int
    """Files of a chunk."""
    work: Path
    published: Callable[[int], pa.Table | None]


def check_ray() -> None:
    """Raise ParamsError where Ray is not installed."""
    try:
        import ray.data  # noqa: F401
    except ImportError:
        raise ParamsError(
            "--engine ray needs the package ray; install it: .venv/bin/python -m pip install -e '.[ray]'"
        ) from None


def score_on_ray(
    batch: Batch, detector: Scorer, *, threshold: float, workers: int | None, skipped: Counter[str]
) -> Iterator[tuple[int, int]]:
    """Write batch.work/NNNNNNNN.parquet for every chunk; yields (its files, those of them that were scored now).

    `workers`: processes, by default one for each core of the cluster. `threshold`: as in score_in_chunks. `skipped`
    gets the number of files left out of each kind. Raises DataError with what stopped the source or a worker.
    """
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)  # progress.py shows what is going on, as for one process
    with _cluster():
        context = DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.target_max_block_size = 1  # a block holds one chunk, which is what a worker takes at a time
        cores: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        most = workers or max(1, int(cores.get("CPU", 1)))
        with DataContext.current(context):
            here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
            # neither this block nor the task that reads takes a core: the workers have them all
            start = ray.data.from_arrow(pa.table({"start": [0]}))
            chunks = start.map_batches(partial(tasks, batch), batch_format="pyarrow", num_cpus=0, label_selector=here)
            done = chunks.map_batches(
                ChunkScorer,
                batch_format="pyarrow",
                # the pool may shrink: a worker of a lost machine has no other to go to when all cores are taken
                compute=ActorPoolStrategy(min_size=1, max_size=most, initial_size=most),
                fn_constructor_args=(ray.put(with_models(detector)), threshold, versions()),
                num_cpus=1,
            )
            rows: Any
            for rows in done.iter_batches(batch_size=None, batch_format="pyarrow"):
                for row in rows.to_pylist():
                    yield from take(row, batch.work, skipped)


@contextmanager
def _cluster() -> Iterator[None]:
    """The cluster that this process is in, that RAY_ADDRESS names, or that runs here; or else one of this machine."""
    import ray

    if ray.is_initialized():
        yield
        return
    # no lines of Ray's own between those of the command
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises plain exceptions too, as for a start that takes too long
        raise DataError(f"no Ray cluster can be reached or started ({one_line(error)}); check RAY_ADDRESS") from None
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray has set one of its own
    try:
        yield
    finally:
        ray.shutdown()


def take(row: dict[str, Any], work: Path, skipped: Counter[str]) -> Iterator[tuple[int, int]]:
    """Write the chunk of a row of DONE and yield its counts, or note what the source said at its end."""
    if row["failed"] is not None:
        raise DataError(row["failed"])
    if row["skipped"] is not None:
        skipped.clear()
        skipped.update(json.loads(row["skipped"]))
        return
    if row["chunk"] is not None:
        path = chunk_file(work, row["number"])
        part = path.with_suffix(".partial")
        part.write_bytes(row["chunk"])
        part.replace(path)
    yield row["files"], row["scored"]


def tasks(batch: Batch, _: pa.Table) -> Iterator[pa.Table]:
    """Rows of TASK: every chunk of the source in its order, and at the end what was left out."""
    skipped: Counter[str] = Counter()
    try:
        found = entries(batch.source, follow_links=batch.follow_links, skipped=skipped)
        packed = (
            pack(entry, batch.source, follow_links=batch.follow_links) for entry in itertools.islice(found, batch.limit)
        )
        for number, chunk in enumerate(in_chunks(packed, batch.size)):
            if sum(len(row.get("data") or b"") for row in chunk) > MOST_BYTES:
                raise DataError(
                    f"the archive members of {len(chunk)} files from {chunk[0]['path']} on are larger than"
                    f" {MOST_BYTES >> 30} GiB; unpack the archives or set detector.batch_size lower"
                )
            waiting, published = read_chunk(chunk_file(batch.work, number)), batch.published(number)
            yield _row(
                TASK,
                number=number,
                entries=chunk,
                waiting=None if waiting is None else _as_bytes(waiting.select(RESULTS.names)),
                published=None if published is None else _as_bytes(published.select(RESULTS.names)),
            )
        yield _row(TASK, skipped=json.dumps(skipped))
    except DensitywatchError as error:
        yield _row(TASK, failed=str(error))


class ChunkScorer:
    """A worker: it gets the detector once, and then scores one chunk after the other."""

    def __init__(self, detector: Any, threshold: float, wanted: dict[str, str]) -> None:
        """`detector`: Ray's reference to a Scorer. `wanted`: the versions of SAME where the command runs."""
        import ray

        here = versions()
        wrong = [f"{name} {here[name]} in place of {wanted[name]}" for name in SAME if here[name] != wanted[name]]
        self.wrong = f"a worker has {', '.join(wrong)}; install the same requirements.lock on every machine"
        self.detector: Scorer | None = None if wrong else ray.get(detector)
        self.threshold = threshold

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Rows of TASK to rows of DONE."""
        return pa.concat_tables([self._done(row) for row in rows.to_pylist()])

    def _done(self, row: dict[str, Any]) -> pa.Table:
        if self.detector is None:
            return _row(DONE, failed=self.wrong)
        if row["entries"] is None:
            return _row(DONE, skipped=row["skipped"], failed=row["failed"])
        try:
            chunk = list(load_ahead(map(unpack, row["entries"]), self.detector))
            table, scored = chunk_table(
                chunk,
                self.detector,
                self.threshold,
                waiting=_as_table(row["waiting"]),
                published=lambda: _as_table(row["published"]),
            )
        except DensitywatchError as error:
            return _row(DONE, failed=str(error))
        file = None if table is None else _as_bytes(table)
        return _row(DONE, number=row["number"], files=len(chunk), scored=scored, chunk=file)


def with_models(detector: Scorer) -> Scorer:
    """The detector with all its models in memory: they are read from folders that another machine need not have."""
    inner: Any = getattr(detector, "detector", detector)
    for name in getattr(inner, "facts", {}).get("models", ()):
        inner.models[name]
    return detector


def versions() -> dict[str, str]:
    """Of the packages of SAME, here."""
    return {name: version(name) for name in SAME}


def _row(schema: pa.Schema, **values: Any) -> pa.Table:
    return pa.Table.from_pylist([values], schema=schema)


def _as_bytes(table: pa.Table) -> bytes:
    """A table as a Parquet file."""
    file = pa.BufferOutputStream()
    pq.write_table(table, file)
    return bytes(file.getvalue())


def _as_table(data: bytes | None) -> pa.Table | None:
    return None if data is None else pq.read_table(pa.BufferReader(data))
