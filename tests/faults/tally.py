"""What `make faults` counts: each fault, how often it was tried and survived, and what was lost."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

TABLE = Path("var") / "faults.md"
FIGURES = Path("var") / "faults.json"


@dataclass
class Fault:
    """One row of the table."""

    name: str
    tried: int = 0
    survived: int = 0
    lost: list[str] = field(default_factory=list)


class Tally:
    """The faults of a session, in the order in which they were first tried."""

    def __init__(self) -> None:
        self.faults: dict[str, Fault] = {}

    @contextmanager
    def tried(self, name: str, times: int = 1) -> Iterator[None]:
        """Count `times` tries of a fault; they count as survived when the block ends without an error.

        `times`: how many blows one check at the end of the block answers for.
        """
        fault = self.faults.setdefault(name, Fault(name))
        fault.tried += times
        try:
            yield
        except BaseException as error:
            fault.lost.append(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            raise
        fault.survived += times

    def keep(self, root: Path) -> None:
        """Take over the rows of earlier sessions for what this one has not tried; `make faults` begins without any."""
        try:
            earlier = json.loads((root / FIGURES).read_text(encoding="utf-8"))["faults"]
        except FileNotFoundError:
            return
        self.faults = {row["name"]: Fault(**row) for row in earlier} | self.faults

    def table(self) -> str:
        """The rows in Markdown. An error is what was lost, in its own words."""
        rows = ["| fault | tried | survived | lost |", "|---|---|---|---|"]
        for fault in self.faults.values():
            lost = "; ".join(fault.lost).replace("|", "/") or "nothing"
            rows.append(f"| {fault.name} | {fault.tried} | {fault.survived} | {lost} |")
        faults = list(self.faults.values())
        tried, survived = sum(fault.tried for fault in faults), sum(fault.survived for fault in faults)
        rows.append(f"| **all** | **{tried}** | **{survived}** | |")
        return "\n".join(rows) + "\n"

    def write(self, root: Path) -> str:
        """Write the table and its figures under `root`/var; returns the table with what it was measured by."""
        self.keep(root)
        said = f"{processor()}, {os.cpu_count()} cores\n\n{self.table()}"
        (root / TABLE).parent.mkdir(exist_ok=True)
        (root / TABLE).write_text(said, encoding="utf-8")
        rows = [asdict(fault) for fault in self.faults.values()]
        (root / FIGURES).write_text(json.dumps({"faults": rows}, indent=1) + "\n", encoding="utf-8")
        return said


def processor() -> str:
    """The name of this machine's processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "an unknown processor"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "an unknown processor"
