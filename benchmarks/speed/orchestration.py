"""What Prefect, MLflow and DVC add to a stage, next to the same command run bare.

    python benchmarks/speed/orchestration.py [STAGES]

A project in a temporary folder has STAGES (default 6) stages in a row, each of which writes one file. Each is run bare
(Python, torch and the params), then with one more layer at a time: a run of MLflow's with 100 values, DVC, a task of
Prefect's as `make run` makes it, with a server of its own. Then all of them again, unchanged. Seconds are by the clock
and of the processor (this process, its server, all children); the clock counts what other programs take.

Ends with 1 when a stage that runs costs more than 10 s or one that is skipped more than 2 s.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
RUN_LIMIT, SKIP_LIMIT = 10.0, 2.0
WORK = """
import sys
from pathlib import Path
from densitywatch.models import storage  # torch, which every stage that trains imports anyway
from densitywatch.params import load_params
name, tracked = sys.argv[1], sys.argv[2:] == ["--track"]
if tracked:
    from densitywatch.tracking.runs import training_run
    facts = {"dataset_name": "none", "dataset_digest": "0" * 64, "stage": name}
    params = load_params(Path("params.yaml"))
    with training_run(next(iter(params.models)), params, Path(), **facts) as run:
        for step in range(100):
            run.log(step, {"loss": 1 / (1 + step)})
Path(name + ".txt").write_text("done " + name)
"""


def make_project(root: Path, stages: int) -> None:
    """A repository whose stage k depends on what stage k - 1 wrote, and the files that stages bare of DVC need."""
    shutil.copy(ROOT / "params.yaml", root / "params.yaml")
    (root / "work.py").write_text(WORK, encoding="utf-8")
    lines = ["stages:"]
    for k in range(stages):
        deps = f"[stage{k - 1}.txt]" if k else "[work.py]"
        command = f"{sys.executable} work.py stage{k} --track"
        lines.append(f"  stage{k}: {{cmd: {command}, deps: {deps}, outs: [stage{k}.txt]}}")
    (root / "dvc.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=root, check=True)  # noqa: S603


def processor_seconds() -> float:
    """Of this process, of what it has ended, and of what runs below it."""
    own = os.times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in psutil.Process().children(recursive=True):
        used = child.cpu_times()
        total += used.user + used.system + used.children_user + used.children_system
    return total


def measured(work: Callable[[], Any], stages: int) -> tuple[float, float]:
    """Seconds a stage by the clock, and of the processor."""
    clock, processor = time.perf_counter(), processor_seconds()
    work()
    return (time.perf_counter() - clock) / stages, (processor_seconds() - processor) / stages


def run_each(root: Path, stages: int, command: Callable[[int], list[str]]) -> Callable[[], None]:
    def work() -> None:
        for k in range(stages):
            subprocess.run(command(k), cwd=root, check=True, stdout=subprocess.DEVNULL)  # noqa: S603

    return work


def forget(root: Path) -> None:
    """Make every stage one that must run: neither its results, nor DVC's record, nor its run cache are there."""
    for path in (*root.glob("stage*.txt"), root / "dvc.lock"):
        path.unlink(missing_ok=True)
    for folder in ("cache", "tmp"):
        shutil.rmtree(root / ".dvc" / folder, ignore_errors=True)


def main(stages: int) -> int:
    with tempfile.TemporaryDirectory(prefix="orchestration-") as scratch:
        root = Path(scratch)
        os.environ |= {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
        for name in ("MLFLOW_TRACKING_URI", "DATABASE_URL", "PREFECT_API_URL"):
            os.environ.pop(name, None)
        sys.path.insert(0, str(ROOT))
        from pipelines import prefect_home, server

        make_project(root, stages)
        script = [sys.executable, "work.py"]
        dvc = [sys.executable, "-m", "dvc", "repro", "--single-item"]
        rows: dict[str, tuple[float, float]] = {}
        rows["the command, bare"] = measured(run_each(root, stages, lambda k: [*script, f"stage{k}"]), stages)
        track = run_each(root, stages, lambda k: [*script, f"stage{k}", "--track"])
        run_each(root, 1, lambda k: [*script, f"stage{k}", "--track"])()  # makes the store, once a project
        rows["and MLflow"] = measured(track, stages)
        forget(root)
        rows["and MLflow, DVC"] = measured(run_each(root, stages, lambda k: [*dvc, f"stage{k}"]), stages)
        rows["unchanged: DVC alone"] = measured(run_each(root, stages, lambda k: [*dvc, f"stage{k}"]), stages)

        prefect_home.settle(root)
        start = measured(lambda: server.start_temporary(root), 1)
        # after settle, as prefect reads its settings when it is imported
        from prefect import flow

        from pipelines import dvc_commands, dvc_graph, stage_tasks

        @flow(name="orchestration")
        def whole(*, ask: bool = False) -> list[str]:
            graph = dvc_graph.read_graph(root)
            stale = {stage.name for stage in graph} if ask else dvc_commands.stale_stages(root)
            return [step.outcome for step in stage_tasks.run_graph(root, graph, stale)]

        whole()  # imports, once a run
        forget(root)
        outcomes: list[str] = []
        rows["and MLflow, DVC, Prefect"] = measured(lambda: outcomes.extend(whole()), stages)
        rows["unchanged: a task that asks DVC"] = measured(lambda: outcomes.extend(whole(ask=True)), stages)
        rows["unchanged: a task that is skipped"] = measured(lambda: outcomes.extend(whole()), stages)
        assert outcomes == ["ran"] * stages + ["skipped"] * 2 * stages, outcomes
        server.send_logs()  # else Prefect tries for a minute to send them to a server that has stopped
        server.stop_temporary()
    bare = rows["the command, bare"]
    print(f"{stages} stages; seconds a stage by the clock, of the processor, and over the bare command")
    print("| a stage | s | s of the processor | adds, s | over bare | asked, s |\n|---|---|---|---|---|---|")
    late = False
    for name, (clock, processor) in rows.items():
        skipped = name.startswith("unchanged")
        adds = clock if skipped else clock - bare[0]
        limit = SKIP_LIMIT if skipped else RUN_LIMIT
        late |= adds > limit
        asked = "" if name == "the command, bare" else f"{limit:.0f}"
        print(f"| {name} | {clock:.2f} | {processor:.2f} | {adds:.2f} | {clock / bare[0]:.1f}x | {asked} |")
    print(f"a run's own server, once: {start[0]:.1f} s, {start[1]:.1f} of the processor")
    return int(late)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else 6))
