"""`python -m pipelines [retrain [pool] | detect-outliers]`: run a flow now; `make run` is `retrain`.

`python -m pipelines status` (`make status`) says what goes on. `ask REF`, `propose BASE`, `compare BASE`, `fresh`,
`pull` and `audit` are what people and CI do without a flow.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
import traceback
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Literal

from densitywatch import environment
from densitywatch.errors import DensitywatchError
from densitywatch.params import load_params
from densitywatch.progress import tell
from densitywatch.text import visible
from densitywatch.tracking.store import check_reachable, tracking_uri
from pipelines import prefect_home, run_lock, run_times, server, stoppable_runs

FLOWS = ("retrain", "detect-outliers")
PLACEMENTS: dict[str, Literal["here", "pool"]] = {"here": "here", "pool": "pool"}
PROGRAMS = {
    "status": "status",
    "ask": "ask_retrain",
    "propose": "propose_retrain",
    "compare": "compare",
    "fresh": "fresh",
    "pull": "pull",
    "audit": "audit",
}
"""What runs no flow: the verb, and its module, whose `main` takes the other arguments."""
TRACEBACK = Path("var") / "log" / "traceback.txt"


def main(arguments: list[str]) -> int:
    """Run the flow that is named; returns the exit code: 0 done, 1 a failure named in one line, 2 wrong usage.

    A process stopped by Ctrl-C, SIGTERM or SIGHUP ends with 130, 143 or 129.
    """
    flow, *placed = arguments or ["retrain"]
    if flow in PROGRAMS:
        try:
            environment.read_file(Path.cwd())
        except DensitywatchError as error:
            print(f"pipelines: {error}", file=sys.stderr)
            return error.exit_code
        return int(import_module(f"pipelines.{PROGRAMS[flow]}").main(arguments[1:]))
    if flow not in FLOWS or len(placed) > (flow == "retrain") or not set(placed) <= PLACEMENTS.keys():
        flows = "retrain [here | pool] | detect-outliers"
        print(f"usage: python -m pipelines [{' | '.join([flows, *PROGRAMS])}]", file=sys.stderr)
        return 2
    root = Path.cwd()
    started = time.time()
    with ExitStack() as stack:
        try:
            environment.check_folder(root)
            environment.read_file(root)
            stack.enter_context(stoppable_runs.stoppable(root, command=True))
            if flow == "retrain":
                stack.enter_context(stoppable_runs.one_run(root))
                return _retrain(root, started, PLACEMENTS[placed[0] if placed else "here"])
            return _detect_outliers(root, stack)
        except DensitywatchError as error:
            server.send_logs()
            print(f"pipelines: {error}", file=sys.stderr)
            return error.exit_code
        except Exception as error:
            server.send_logs()
            print(f"pipelines: {visible(_unforeseen(error, root))}", file=sys.stderr)
            return 1


def _retrain(root: Path, started: float, placement: Literal["here", "pool"]) -> int:
    from pipelines.up_to_date import is_up_to_date

    if is_up_to_date(root):
        print(f"everything is up to date ({time.time() - started:.1f} s)")
        return 0
    _settle(root)
    _one_line_errors()
    environment.keep_freed_memory()  # the gate measures every candidate in this process
    from pipelines.retrain import retrain

    ready = time.time()
    steps = [run_times.Step("start", "done", started, ready), *retrain(root, placement=placement)]
    ended = time.time()
    run_times.save(steps, started, ended, root / "var" / "run.json")
    print(run_times.table(steps, started, ended))
    for page in ("reports/index.html", "data/outliers/demo/report.html"):
        if (root / page).is_file():
            print(f"look at {root / page}")
    return 0


def _detect_outliers(root: Path, stack: ExitStack) -> int:
    from densitywatch.batches.inbox import find_batches

    params = load_params(root / "params.yaml")
    if not any(batch.state == "ready" for batch in find_batches(params, root, now=time.time())):
        print("no new batch")
        return 0
    if prefect_home.settle(root) is None:  # two temporary servers would share one database
        stack.enter_context(run_lock.one_run_at_a_time(root))
    _settle(root)
    _one_line_errors()
    from pipelines.detect_outliers import detect_outliers

    for summary in detect_outliers(root):
        counts = f"{summary['outliers']} outliers, {summary['quarantined']} quarantined of {summary['files']} files"
        tell(f"{summary['batch']}: {counts}; {summary['folder']}/report.html")
    return 0


def _settle(root: Path) -> None:
    """Have a server to talk to: the user's, that of `make up`, or one that ends with this process."""
    address = prefect_home.settle(root)
    if address is not None:
        prefect_home.check_server(address)
    check_reachable(tracking_uri(load_params(root / "params.yaml"), root))  # not after hours, in a stage
    where = f"at {address}" if address else "for this run alone (`make up` starts one that stays)"
    print(f"Prefect: a server {where}", flush=True)
    if address is None:
        server.start_temporary(root)


def _unforeseen(error: Exception, root: Path) -> str:
    """One line for an error that is not ours; the traceback goes into a file, where the disk has room for it."""
    file = root / TRACEBACK
    said = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:300]}"
    if shutil.disk_usage(root).free < server.LEAST_FREE:  # then nearly any error follows from that
        return f"the disk is full; free some space and run it again ({said})"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError as failed:
        return f"{said}; {file} cannot be written: {failed.strerror}"
    return f"{said}; the traceback is in {file}"


class _OneLine(logging.Filter):
    """Drops tracebacks from Prefect's log. An error that is not ours has its traceback in a file."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.exc_info = record.exc_text = None
        return True


def _one_line_errors() -> None:
    for name in ("prefect.task_runs", "prefect.flow_runs"):
        logging.getLogger(name).addFilter(_OneLine())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
