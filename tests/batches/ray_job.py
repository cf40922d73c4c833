"""`python -m tests.batches.ray_job TASKS`: score batches on a Ray cluster of two nodes of one core each.

A process of its own, because a process has one Ray. TASKS is a list in JSON. A task has `root`, `source` and `out`. It
may have `seconds` (that a chunk takes), `detector` (a folder, in place of the stand-in), `copy_to`, and `kill_after`,
the number of chunks after which the second node is killed, while it scores one. Prints for each the nodes that scored
its chunks, one after the other; `before` are those before the kill.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
from numpy.typing import NDArray
from ray.cluster_utils import Cluster

from densitywatch.batches.score_batch import ScoreOptions, score_source
from densitywatch.params import load_params
from tests.detector.standin import Brightness

ROOT = Path(__file__).parents[2]
MEMORY = 100 << 20


class Noting(Brightness):
    """Notes which node scores a chunk. With `nodes` of 2, the first chunks wait until both nodes score.

    Once `kill_after` chunks are noted, the node `doomed` ends no chunk any more: a file says so, and it is killed while
    it works. The gallery is scored where the command runs, which is no worker.
    """

    def __init__(self, log: Path, seconds: float, doomed: str | None, kill_after: int) -> None:
        super().__init__(seconds=seconds)
        self.log, self.nodes = log, 1 if doomed is None else 2
        self.doomed, self.kill_after = doomed, kill_after

    def score(self, images: NDArray[Any]) -> SimpleNamespace:
        context = ray.get_runtime_context()
        if context.get_actor_id() is None:
            return super().score(images)
        with self.log.open("a") as file:
            file.write(context.get_node_id() + "\n")
        while len(set(self.log.read_text().split())) < self.nodes:
            time.sleep(0.05)
        while context.get_node_id() == self.doomed and len(self.log.read_text().split()) >= self.kill_after:
            self.log.with_suffix(".held").touch()
            time.sleep(0.05)
        return super().score(images)


def run(task: dict[str, Any], cluster: Cluster, second: Any) -> dict[str, Any]:
    whole = load_params(ROOT / "params.yaml")
    params = whole.model_copy(update={"detector": whole.detector.model_copy(update={"batch_size": 8})})
    out, log = Path(task["out"]), Path(task["out"] + ".log")
    out.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    before: list[str] = []

    def kill() -> None:
        while not log.with_suffix(".held").exists():
            time.sleep(0.05)
        before.extend(log.read_text().split())
        cluster.remove_node(second, allow_graceful=False)

    if "kill_after" in task:
        threading.Thread(target=kill, daemon=True).start()
    detector = task.get("detector") or Noting(
        log, task.get("seconds", 0), second.node_id if "kill_after" in task else None, task.get("kill_after", 0)
    )
    options = ScoreOptions(engine="ray", copy_to=task.get("copy_to"))
    score_source(task["source"], params, Path(task["root"]), out, detector, options)
    nodes = log.read_text().split()
    return {"before": before, "after": nodes[len(before) :], "second": second.node_id}


def patiently(start: Callable[[], Any]) -> Any:
    """Ray gives a node thirty seconds to start, which is too short where other programs use the processor."""
    for _ in range(4):
        with suppress(Exception):
            return start()
    return start()


def main(tasks: list[dict[str, Any]]) -> None:
    node = {"num_cpus": 1, "object_store_memory": MEMORY}
    folder = tempfile.mkdtemp(prefix="ray-")  # the path of a socket has a hundred characters at most
    os.environ["RAY_TMPDIR"] = folder  # all that Ray writes, the address of the cluster among it
    cluster = patiently(lambda: Cluster(True, head_node_args={**node, "include_dashboard": False}))
    second = patiently(lambda: cluster.add_node(**node))
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        done = [run(task, cluster, second) for task in tasks]
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(done))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
