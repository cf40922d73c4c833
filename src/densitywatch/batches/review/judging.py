"""A person's verdicts on a batch's flagged images: added under the batch's lock, and shown in its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from densitywatch.batches import publishing
from densitywatch.batches.batch_report import write_batch_report
from densitywatch.batches.results_folder import SUMMARY, behind_link, read_summary
from densitywatch.batches.verdicts import Key, Verdict, read_verdicts, write_verdicts
from densitywatch.errors import DataError
from densitywatch.params import Params
from densitywatch.text import as_text

GONE = "the results of this batch are not there any more, so nothing was saved; start the review anew"


def batch_folder(batch: str, params: Params, root: Path) -> Path:
    """The results of `batch`, a name under inbox.results or a path. Raises DataError when there are none."""
    results = root / params.inbox.results
    for folder in (results / batch, root / batch):
        if read_summary(folder) is not None:
            return behind_link(folder)
        if (folder / SUMMARY).exists():
            raise DataError(f"{folder / SUMMARY}: damaged; score the batch again, its verdicts stay")
    known = sorted(path.parent.name for path in results.glob(f"[!.]*/{SUMMARY}"))
    there = f"; there is: {', '.join(known[:20])}" if known else "; score one first"
    raise DataError(f"no results of a batch '{as_text(batch)}' in {results}{there}")


def summary_of(folder: Path) -> dict[str, Any]:
    """The summary of the results in `folder`. Raises DataError when they are not there any more."""
    summary = read_summary(folder)
    if summary is None:
        raise DataError(f"{folder}: {GONE}")
    return summary


def give_verdicts(folder: Path, given: dict[Key, Verdict | None], *, source: str | None = None) -> dict[Key, Verdict]:
    """Add verdicts to those of the batch (None takes one back); returns all of them once they are on the disk.

    `source`: the results must still be this source's. Raises DiskFull, and DataError when the results are not there
    any more.
    """
    try:
        with publishing.held(folder):
            summary = summary_of(folder)
            if source is not None and summary["identity"]["source"] != source:
                raise DataError(f"{folder}: {GONE}")
            verdicts = read_verdicts(folder)
            for key, verdict in given.items():
                if verdict is None:
                    verdicts.pop(key, None)
                else:
                    verdicts[key] = verdict
            write_verdicts(folder, verdicts)
    except FileNotFoundError:
        raise DataError(f"{folder}: {GONE}") from None
    return verdicts


def renew_report(folder: Path) -> None:
    """Write the report again, with the verdicts so far. Raises DataError when the results are not there any more."""
    try:
        with publishing.held(folder):
            write_batch_report(folder)
    except FileNotFoundError:
        raise DataError(f"{folder}: {GONE}") from None
