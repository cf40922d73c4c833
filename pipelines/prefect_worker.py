"""Prefect's worker as this project runs it: `python -m pipelines.prefect_worker --pool gpu --name NAME`.

Each run of a deployment with a limit leaves connections in reference cycles, with memory that Python does not count. So
Python's own collector comes hours too late: without this the worker grew by 40 MiB in two hours (docs/reliability.md).
"""

from __future__ import annotations

import gc
import runpy
import sys
import threading
import time

EVERY_SECONDS = 300.0


def main(arguments: list[str], every: float = EVERY_SECONDS) -> None:
    """Become `prefect worker start` with these arguments; collect garbage every `every` seconds meanwhile."""
    threading.Thread(target=_collect, args=(every,), name="garbage", daemon=True).start()
    sys.argv = ["prefect", "worker", "start", *arguments]
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)


def _collect(every: float) -> None:
    while True:
        time.sleep(every)
        gc.collect()


if __name__ == "__main__":
    main(sys.argv[1:])
