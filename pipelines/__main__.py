"""`python -m pipelines [retrain | detect-outliers]`: run a flow here and now; `make run` is `retrain`."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

from densitywatch import environment
from densitywatch.errors import DensitywatchError
from densitywatch.outliers.inbox import find_batches
from densitywatch.params import load_params
from pipelines import home, server, timing
from pipelines.fresh import is_fresh

FLOWS = ("retrain", "detect-outliers")


def main(arguments: list[str]) -> int:
    """Run the flow that is named; returns the exit code: 0 done, 1 a failure named in one line, 2 wrong usage."""
    flow = arguments[0] if arguments else "retrain"
    if flow not in FLOWS or len(arguments) > 1:
        print(f"usage: python -m pipelines [{' | '.join(FLOWS)}]", file=sys.stderr)
        return 2
    root = Path.cwd()
    started = time.time()
    try:
        environment.check_folder(root)
        with home.one_run_at_a_time(root):
            if flow == "retrain":
                return _retrain(root, started)
            return _detect_outliers(root)
    except DensitywatchError as error:
        print(f"pipelines: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("pipelines: stopped; run it again to go on where it was", file=sys.stderr)
        return 130


def _retrain(root: Path, started: float) -> int:
    if is_fresh(root):
        print(f"everything is up to date ({time.time() - started:.1f} s)")
        return 0
    _settle(root)
    _one_line_errors()
    environment.keep_freed_memory()  # the gate measures every candidate in this process
    from pipelines.retrain import retrain

    ready = time.time()
    steps = [timing.Step("start", "done", started, ready), *retrain(root)]
    ended = time.time()
    timing.save(steps, started, ended, root / "var" / "run.json")
    print(timing.table(steps, started, ended))
    for page in ("reports/index.html", "data/outliers/demo/report.html"):
        if (root / page).is_file():
            print(f"look at {root / page}")
    return 0


def _detect_outliers(root: Path) -> int:
    params = load_params(root / "params.yaml", check_models=False)
    if not any(batch.state == "ready" for batch in find_batches(params, root, now=time.time())):
        print("no new batch")
        return 0
    _settle(root)
    _one_line_errors()
    from pipelines.detect_outliers import detect_outliers

    for summary in detect_outliers(root):
        print(f"{summary['batch']}: {summary['outliers']} outliers, {summary['quarantined']} quarantined", end=" ")
        print(f"of {summary['files']} files; {summary['folder']}/report.html")
    return 0


def _settle(root: Path) -> None:
    """Have a server to talk to: the user's, that of `make up`, or one that ends with this process."""
    address = home.settle(root)
    where = f"at {address}" if address else "of its own while this runs (`make up` starts one that stays)"
    print(f"Prefect: a server {where}", flush=True)
    if address is None:
        server.start_temporary(root)


class _OneLine(logging.Filter):
    """Our own errors are one sentence: Prefect's log shows them without a traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], DensitywatchError):
            record.exc_info = None
        return True


def _one_line_errors() -> None:
    for name in ("prefect.task_runs", "prefect.flow_runs"):
        logging.getLogger(name).addFilter(_OneLine())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
