"""What people said about flagged images: kept with the batch, keyed by path and content."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

from scipy import stats

from densitywatch.errors import DataError
from densitywatch.files import write_whole

Verdict = Literal["outlier", "fine"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
FILE = "verdicts.json"
Key = tuple[str, str]


def read_verdicts(folder: Path) -> dict[Key, Verdict]:
    """(path, sha256) -> verdict. Raises DataError when the file is not readable: a person's work is not replaced."""
    try:
        rows = json.loads((folder / FILE).read_text(encoding="utf-8"))["verdicts"]
        found = {(str(row["path"]), str(row["sha256"])): row["verdict"] for row in rows}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{folder / FILE}: not readable; mend it or move it away") from None
    if not set(found.values()) <= set(VERDICTS):
        raise DataError(f"{folder / FILE}: a verdict is one of {', '.join(VERDICTS)}; mend it or move it away")
    return found


def write_verdicts(folder: Path, verdicts: dict[Key, Verdict]) -> None:
    """Whole or not at all, in a fixed order."""
    rows = [
        {"path": path, "sha256": digest, "verdict": verdict} for (path, digest), verdict in sorted(verdicts.items())
    ]
    write_whole(folder / FILE, json.dumps({"verdicts": rows}, indent=1, ensure_ascii=False) + "\n")


def precision(verdicts: Iterable[Verdict | None]) -> dict[str, Any] | None:
    """How many of the reviewed flagged images were outliers, with a 90 % Clopper-Pearson interval; None before any."""
    given = [verdict for verdict in verdicts if verdict is not None]
    if not given:
        return None
    right, count = given.count("outlier"), len(given)
    low = float(stats.beta.ppf(0.05, right, count - right + 1)) if right else 0.0
    high = float(stats.beta.ppf(0.95, right + 1, count - right)) if right < count else 1.0
    return {"reviewed": count, "outliers": right, "precision": right / count, "low": low, "high": high}
