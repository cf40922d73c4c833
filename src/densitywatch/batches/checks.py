"""What is expected of an incoming batch as a whole: Great Expectations on its table of scores, one row a file.

One broken file is quarantined and the batch goes on. Many of them, or many copies of one image, mean that the camera or
the transfer is broken. No score of a single image shows that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from densitywatch.batches.results_folder import CHECKS, SCORES
from densitywatch.data.validation.manifest_suite import Check
from densitywatch.data.validation.page import Outcome
from densitywatch.data.validation.validate import great_expectations, run
from densitywatch.errors import DataError, ValidationFailed
from densitywatch.files import write_whole
from densitywatch.params import Params

COLUMNS = ["path", "sha256", "status", "reason", "bits_per_dim", "score", "p_value", "outlier"]
USED = ["path", "sha256", "status", "reason", "score", "p_value"]
"""Columns that are needed before any expectation can be looked at."""
LABELS = ["label", "label_probability", "label_p_value"]


def validate_batch(folder: Path, files: int, params: Params) -> list[Outcome]:
    """Check the results in `folder`, of a batch of `files` files; write folder/validation.html (Data Docs).

    An empty batch meets every expectation. Raises ValidationFailed after the page is written: it names the first
    expectation that fails and what was found. Raises DataError when there are no whole results.
    """
    try:
        with (folder / SCORES).open("rb") as file:
            pq.read_table(file).validate(full=True)  # texts that are no UTF-8 are an error only when they are read
            file.seek(0)
            scores = pd.read_parquet(file)
        if missing := [name for name in USED if name not in scores.columns]:
            raise ValueError(f"no column {missing[0]}")
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no whole results of a batch here ({' '.join(str(error).split())[:100]})") from None
    if scores.empty and not files:
        return []
    outcomes, documents = run(batch_suite(files, list(scores.columns), params), with_findings(scores))
    write_whole(folder / CHECKS, documents)
    failed = [outcome for outcome in outcomes if not outcome.holds]
    if failed:
        first = failed[0]
        more = f"; {len(failed) - 1} more failed" if len(failed) > 1 else ""
        raise ValidationFailed(
            f"expectation '{first.name}' failed: {first.means}, but {first.found}{more}; see {folder / CHECKS}"
        )
    return outcomes


def with_findings(scores: pd.DataFrame) -> pd.DataFrame:
    """The table with two more columns that the expectations need: `whole` and `copies`."""
    scored = scores["status"] == "scored"
    valid = np.isfinite(scores["score"].astype(float)) & scores["p_value"].between(0, 1, inclusive="right")
    copies = scores.groupby("sha256")["sha256"].transform("size").fillna(1)
    return scores.assign(whole=np.where(scored, valid, scores["reason"].notna()), copies=copies)


def batch_suite(files: int, columns: list[str], params: Params) -> list[Check]:
    """The expectations, the most basic ones first; limits from params.yaml (`inbox:`)."""
    gxe: Any = great_expectations().expectations
    limits = params.inbox
    wanted = [*COLUMNS, *(LABELS if "label" in columns else []), "whole", "copies"]
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
