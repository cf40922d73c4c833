"""What people said about flagged images: verdicts.json next to the results, one verdict by path and content."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel
from scipy import stats

from densitywatch.batches.results_folder import VERDICTS_FILE
from densitywatch.errors import DataError
from densitywatch.files import MOST_LISTS, read_back, write_whole

Verdict = Literal["outlier", "fine"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
Key = tuple[str, str]


class SavedVerdict(BaseModel):
    """One image's line of verdicts.json."""

    path: str
    sha256: str
    verdict: Verdict


class SavedVerdicts(BaseModel):
    """verdicts.json."""

    verdicts: list[SavedVerdict]


def read_verdicts(folder: Path) -> dict[Key, Verdict]:
    """(path, sha256) -> verdict. Raises DataError when the file is damaged: a person's work is not overwritten."""
    try:
        rows = read_back(folder / VERDICTS_FILE, SavedVerdicts, MOST_LISTS)["verdicts"]
    except FileNotFoundError:
        return {}
    except DataError as error:
        raise DataError(f"{error}; mend it or move it away") from None
    return {(row["path"], row["sha256"]): row["verdict"] for row in rows}


def write_verdicts(folder: Path, verdicts: dict[Key, Verdict]) -> None:
    """Write all verdicts, whole or not at all, in a fixed order, through to the disk. `folder` must exist."""
    rows = [
        {"path": path, "sha256": digest, "verdict": verdict} for (path, digest), verdict in sorted(verdicts.items())
    ]
    text = json.dumps({"verdicts": rows}, indent=1, ensure_ascii=False) + "\n"
    write_whole(folder / VERDICTS_FILE, text, new_folder=False)


def precision(verdicts: Iterable[Verdict | None]) -> dict[str, Any] | None:
    """The share of outliers among the reviewed images, with a 90 % Clopper-Pearson interval; None without verdicts."""
    given = [verdict for verdict in verdicts if verdict is not None]
    if not given:
        return None
    right, count = given.count("outlier"), len(given)
    low = float(stats.beta.ppf(0.05, right, count - right + 1)) if right else 0.0
    high = float(stats.beta.ppf(0.95, right + 1, count - right)) if right < count else 1.0
    return {"reviewed": count, "outliers": right, "precision": right / count, "low": low, "high": high}
