"""What one new batch costs in the inbox when 100, and when 10,000, batches have been scored before it.

python benchmarks/speed/many_batches.py [IMAGES [FEW [MANY]]]     after `make run`

Makes two projects in a temporary folder. In each, the inbox holds that many scored batches of FILES files, with their
results, table of batches, drift stream, flagging stream and MLflow runs as the scheduled job leaves them, and one new
batch of IMAGES test images. Then a process does the steps of the job on the new batch, as the schedule starts one each
time, and its processor's time is taken, from its start on: `start` is what it imports. The two projects take turns,
with another new batch in each round.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import closing, redirect_stderr
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from densitywatch import environment
from densitywatch.batches import batch_table
from densitywatch.batches.inbox import find_batches
from densitywatch.batches.looks import note_look
from densitywatch.batches.results_folder import SUMMARY, note_run, results_folder
from densitywatch.batches.score_batch import ScoreOptions, score_source
from densitywatch.data.dataset import open_split
from densitywatch.data.encoding import png
from densitywatch.params import Params, load_params
from densitywatch.tracking.runs import log_batch

FILES = 4
ROUNDS = 3
PROJECT = Path.cwd()
OPTIONS = ScoreOptions(control="stream")
COPIES = (
    "insert into runs select :new, name, source_type, source_name, entry_point_name, user_id, status, start_time,"
    " end_time, source_version, lifecycle_stage, artifact_uri, experiment_id, deleted_time from runs"
    " where run_uuid = :old",
    "insert into tags select key, case key when 'densitywatch.batch' then :new else value end, :new from tags"
    " where run_uuid = :old",
    "insert into params select key, value, :new from params where run_uuid = :old",
    "insert into metrics select key, value, timestamp, :new, step, is_nan from metrics where run_uuid = :old",
    "insert into latest_metrics select key, value, timestamp, step, is_nan, :new from latest_metrics"
    " where run_uuid = :old",
)


@dataclass
class Costs:
    """Seconds of each step, one number a round."""

    start: list[float] = field(default_factory=list)
    find: list[float] = field(default_factory=list)
    score: list[float] = field(default_factory=list)
    log: list[float] = field(default_factory=list)
    note: list[float] = field(default_factory=list)

    @property
    def whole(self) -> list[float]:
        return [sum(steps) for steps in zip(self.start, self.find, self.score, self.log, self.note, strict=True)]


def fill(inbox: Path, name: str, images: np.ndarray) -> None:
    folder = inbox / name
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        (folder / f"{i:05d}.png").write_bytes(png(image))
    (folder / "_SUCCESS").touch()


def make(root: Path, params: Params, count: int, images: np.ndarray) -> None:
    """A project with `count` scored batches: two are really scored, the others are copies of what the second left."""
    inbox, results = root / "data" / "inbox", root / params.inbox.results
    for name in ("data/prepared", "models"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(PROJECT / name)
    for number in range(2):
        fill(inbox, f"b{number:06d}", images[number * FILES : (number + 1) * FILES])
        work(root, params, f"b{number:06d}", Costs())
    first = inbox / "b000001"
    for number in range(2, count):
        name = f"b{number:06d}"
        shutil.copytree(first, inbox / name, copy_function=os.link)
        shutil.copytree(results / "b000001", results / name, copy_function=os.link)
        summary = json.loads((results / "b000001" / SUMMARY).read_text())
        summary["batch"] = summary["identity"]["source"] = f"data/inbox/{name}"
        for file in (SUMMARY, "run.json"):
            (results / name / file).unlink()
        (results / name / SUMMARY).write_text(json.dumps(summary, indent=2))
    rows = batch_table.read_table(results)
    (results / batch_table.TABLE).write_text("".join(row.model_dump_json() + "\n" for row in rows))
    grow(results, "drift-*.json", "name", count)
    grow(results, "stream-*.json", "batch", count)
    more_runs(root / "mlflow.db", count)
    for batch in find_batches(params, root, now=time.time()):
        note_run(results_folder(batch.source, params, root), listing=batch.listing)
    find_batches(params, root, now=time.time())  # as every look at the inbox does


def grow(results: Path, pattern: str, key: str, count: int) -> None:
    """Give the state of a stream `count` batches, each with figures near those of the first ones."""
    (file,) = results.glob(pattern)
    state = json.loads(file.read_text())
    generator = np.random.default_rng(0)
    start = state["batches"][-1]
    while len(state["batches"]) < count:
        one = copy.deepcopy(start)
        one[key] = one[key][:-6] + f"{len(state['batches']):06d}"
        one["content"] = uuid.UUID(bytes=generator.bytes(16)).hex
        if "measures" in one:
            one["measures"] = [
                None if value is None else value * generator.normal(1, 0.01) for value in one["measures"]
            ]
            one["beyond"] = [0 for _ in one["beyond"]]
        state["batches"].append(one)
    file.write_text(json.dumps(state))


def more_runs(database: Path, count: int) -> None:
    """Copies of the first run in MLflow's database, each with a digest of its own."""
    with closing(sqlite3.connect(database)) as store:
        (first,) = store.execute("select run_uuid from runs order by start_time limit 1").fetchone()
        for copy_rows in COPIES:
            store.executemany(copy_rows, ({"old": first, "new": f"{number:032x}"} for number in range(2, count)))
        store.commit()


def seconds(work_: Callable[[], Any], to: list[float]) -> Any:
    started = time.process_time()
    found = work_()
    to.append(time.process_time() - started)
    return found


def work(root: Path, params: Params, name: str, costs: Costs) -> None:
    """What the scheduled job does with one new batch."""
    started = time.time()
    present = seconds(lambda: find_batches(params, root, now=time.time()), costs.find)
    (batch,) = [one for one in present if one.state == "ready" and one.name == name]
    summary = seconds(lambda: score_source(batch.source, params, root, options=OPTIONS), costs.score)
    seconds(lambda: log_batch(summary, params, root), costs.log)
    note_run(Path(summary["folder"]), listing=batch.listing)
    seconds(
        lambda: note_look(params, root, started=started, ended=time.time(), scored=1, left=[], failures=[]), costs.note
    )


def in_a_process(root: Path, name: str, cost: Costs) -> None:
    """`work` in a process of its own, its seconds put to `cost`."""
    command = [sys.executable, __file__, "--one", str(root), name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT)  # noqa: S603
    for step, taken in json.loads(done.stdout.splitlines()[-1]).items():
        getattr(cost, step).append(taken)


def one(root: Path, name: str) -> None:
    """What that process does."""
    cost = Costs(start=[time.process_time()])
    work(root, settings(), name, cost)
    print(json.dumps({step: taken[0] for step, taken in asdict(cost).items()}))


def settings() -> Params:
    environment.settle(os.environ)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    params = load_params(PROJECT / "params.yaml")
    inbox = params.inbox.model_copy(update={"metrics_file": "densitywatch.prom", "address": "data/inbox"})
    return params.model_copy(update={"inbox": inbox})


def main(images: int = 500, few: int = 100, many: int = 10_000) -> None:
    params = settings()
    pixels = np.array(open_split(PROJECT / "data" / "prepared", "test").images[: images * ROUNDS])
    costs = {count: Costs() for count in (few, many)}
    with tempfile.TemporaryDirectory() as scratch, redirect_stderr(StringIO()):
        for count in costs:
            make(Path(scratch) / str(count), params, count, pixels)
        for number in range(ROUNDS):
            for count, cost in costs.items():
                root, name = Path(scratch) / str(count), f"new{number}"
                fill(root / "data" / "inbox", name, pixels[number * images : (number + 1) * images])
                in_a_process(root, name, cost)
    print(
        f"{'scored before':<14}{'start':>8}{'find':>8}{'score':>8}{'MLflow':>8}{'note':>8}{'all':>8}"
        f"   processor's seconds, median of {ROUNDS}"
    )
    for count, cost in costs.items():
        steps = [cost.start, cost.find, cost.score, cost.log, cost.note, cost.whole]
        print(f"{count:<14,}" + "".join(f"{statistics.median(step):8.2f}" for step in steps))
    ratio = statistics.median(costs[many].whole) / statistics.median(costs[few].whole)
    print(f"{many:,} cost {ratio:.3f} times what {few:,} do, for a batch of {images:,} images")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(Path(sys.argv[2]), sys.argv[3])
    else:
        main(*map(int, sys.argv[1:]))
