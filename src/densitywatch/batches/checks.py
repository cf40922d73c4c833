"""What is expected of an incoming batch as a whole: Great Expectations on its table of scores, one row a file.

One broken file is quarantined and the batch goes on. Many of them, or many copies of one image, mean that the camera or
the transfer is broken. No score of a single image shows that.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from densitywatch.batches.results_folder import CHECKS, SCORES
from densitywatch.data.image_table import Table, on_disk, one_value
from densitywatch.data.validation.expectations import Check, NotATable, Outcome, add_parquet, great_expectations, run
from densitywatch.errors import DataError, ValidationFailed
from densitywatch.files import full_disk_as_error, write_whole
from densitywatch.params import Params

COLUMNS = ["path", "sha256", "status", "reason", "bits_per_dim", "score", "p_value", "outlier"]
USED = ["path", "sha256", "status", "reason", "score", "p_value"]
"""Columns that are needed before any expectation can be looked at."""
LABELS = ["label", "label_probability", "label_p_value"]
FINDINGS = {"whole": "BOOLEAN", "copies": "INTEGER"}


def validate_batch(folder: Path, files: int, params: Params) -> list[Outcome]:
    """Check the results in `folder`, of a batch of `files` files; write folder/validation.html (Data Docs).

    An empty batch meets every expectation. Raises ValidationFailed after the page is written: it names the first
    expectation that fails and what was found. Raises DataError when there are no whole results.
    """
    # the table is on disk, so memory does not grow with the batch; by its name a killed process's file is known
    file = folder / f".{SCORES}.densitywatch.partial-{os.getpid()}"
    if not (folder / SCORES).is_file():
        raise DataError(f"{folder}: no whole results of a batch here (no {SCORES})")
    with full_disk_as_error(folder / CHECKS), on_disk(file) as table:
        columns = _read_scores(folder, table)
        if not files and not one_value(table, "SELECT count(*) FROM images"):
            return []
        find(table)
        outcomes, documents = run(batch_suite(files, columns, params), table, file)
    write_whole(folder / CHECKS, documents)
    failed = [outcome for outcome in outcomes if not outcome.holds]
    if failed:
        first = failed[0]
        more = f"; {len(failed) - 1} more failed" if len(failed) > 1 else ""
        raise ValidationFailed(
            f"expectation '{first.name}' failed: {first.means}, but {first.found}{more}; see {folder / CHECKS}"
        )
    return outcomes


def _read_scores(folder: Path, table: Table) -> list[str]:
    """The results in `folder` as a new table `images`; the names of their columns."""
    try:
        with (folder / SCORES).open("rb") as file:
            columns = add_parquet(table, file, FINDINGS)
        if missing := [name for name in USED if name not in columns]:
            raise NotATable(f"no column {missing[0]}")
    except (OSError, NotATable) as error:
        raise DataError(f"{folder}: no whole results of a batch here ({' '.join(str(error).split())[:100]})") from None
    return columns


def find(table: Table) -> None:
    """Fill two columns that the expectations need: `whole` and `copies`."""
    # NaN is NULL here, infinity lies beyond the largest number, and a text is more than any number
    table.execute("""UPDATE images SET copies = 1, whole = CASE WHEN status = 'scored'
        THEN coalesce(score BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308
            AND p_value > 0 AND p_value <= 1 AND typeof(score) <> 'text' AND typeof(p_value) <> 'text', FALSE)
        ELSE reason IS NOT NULL END""")
    table.execute("CREATE TEMP TABLE same AS SELECT sha256, count(*) AS copies FROM images GROUP BY sha256")
    table.execute("CREATE INDEX temp.by_sha256 ON same (sha256)")
    table.execute("UPDATE images SET copies = same.copies FROM same WHERE same.sha256 = images.sha256")


def batch_suite(files: int, columns: list[str], params: Params) -> list[Check]:
    """The expectations, the most basic ones first; limits from params.yaml (`inbox:`)."""
    gxe: Any = great_expectations().expectations
    limits = params.inbox
    wanted = ["position", *COLUMNS, *(LABELS if "label" in columns else []), *FINDINGS]
    return [
        Check("schema", "the table has its columns", gxe.ExpectTableColumnsToMatchOrderedList(column_list=wanted)),
        Check("rows", "every file has its row", gxe.ExpectTableRowCountToEqual(value=files)),
        Check("path_given", "every row has its path", gxe.ExpectColumnValuesToNotBeNull(column="path")),
        Check(
            "whole",
            "every row has a score and a p-value, or a reason why not",
            gxe.ExpectColumnValuesToBeInSet(column="whole", value_set=[True]),
        ),
        Check(
            "readable",
            f"at most {limits.max_quarantined_share:.3g} of the files are quarantined",
            gxe.ExpectColumnValuesToBeInSet(
                column="status", value_set=["scored"], mostly=1 - limits.max_quarantined_share
            ),
        ),
        Check(
            "not_repeated",
            f"at most {limits.max_repeated_share:.3g} of the files are there more than once",
            gxe.ExpectColumnValuesToBeInSet(column="copies", value_set=[1], mostly=1 - limits.max_repeated_share),
        ),
    ]
