"""The values of a training run that the store does not have yet, on the disk, so that a kill loses none.

var/runs/NAME.unsent belongs to the training of NAME that goes on: its first line is the id of its run in MLflow, each
other line one value. A training that ends removes it. One that is killed leaves it, and the next one sends what is in
it, and ends the run in MLflow where it does not go on with it.
"""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import NamedTuple

FOLDER = Path("var") / "runs"
ENDING = ".unsent"


class Value(NamedTuple):
    """One value of a metric, as MLflow takes it."""

    key: str
    value: float
    timestamp: int
    step: int


class Unsent:
    """The file, held by this process alone until `close`. Where another process holds it, nothing is kept."""

    def __init__(self, name: str, root: Path) -> None:
        self.path = root / FOLDER / f"{name}{ENDING}"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # a second training of the same model at the same time
            self._file.close()

    def left(self) -> tuple[str | None, list[Value]]:
        """The run of a training that was killed, or None, and its values that were not sent."""
        if self._file.closed:
            return None, []
        self._file.seek(0)
        lines = self._file.read().splitlines()
        values = []
        for line in lines[1:]:
            try:
                key, value, timestamp, step = json.loads(line)
                values.append(Value(str(key), float(value), int(timestamp), int(step)))
            except (ValueError, TypeError):  # cut off by the kill
                continue
        return (lines[0] or None, values) if lines else (None, [])

    def begin(self, run_id: str) -> None:
        """Note that the training of this run goes on, and that all of its values so far are sent."""
        if not self._file.closed:
            self._file.truncate(0)
            self._file.write(f"{run_id}\n")
            self._file.flush()

    def add(self, values: list[Value]) -> None:
        if not self._file.closed:
            self._file.writelines(json.dumps(value) + "\n" for value in values)
            self._file.flush()

    def end(self) -> None:
        """Remove the file: the training has ended, and all of its values are sent."""
        if not self._file.closed:
            self.path.unlink(missing_ok=True)
            self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
