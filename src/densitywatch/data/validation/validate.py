"""`validate`: Great Expectations on the manifest, one row an image; a failed expectation stops the pipeline.

The checks are in manifest_suite.py, their limits in params.yaml (`expectations:`). Pixels are read once, to see that
the arrays still are what the manifest says. Great Expectations runs in memory and leaves no project folder behind.
"""

from __future__ import annotations

import hashlib
import html
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from densitywatch import environment
from densitywatch.data.dataset import SPLITS, DatasetInfo, batches, open_split, read_facts, read_info
from densitywatch.data.prepare import PREPARED
from densitywatch.data.reading import PART, images_within
from densitywatch.data.validation.manifest_suite import COLUMNS, Check, suite
from densitywatch.data.validation.page import Outcome, alone, validation_page
from densitywatch.errors import DataError, ValidationFailed
from densitywatch.files import whole_folder, write_whole
from densitywatch.params import Params
from densitywatch.progress import say, track

PAGES = Path("reports/data")
METRICS = Path("metrics/data.json")
SAMPLE = 5


def validate(params: Params, root: Path) -> None:
    """Check `root`/data/prepared; write reports/data (pages) and metrics/data.json.

    Raises ValidationFailed, naming the first expectation that fails and some of its rows, after the pages are written.
    metrics/data.json is only there when all expectations hold. Raises DataError when there is no whole dataset.
    """
    folder = root / PREPARED
    info = read_info(folder)
    manifest = read_manifest(folder)
    (root / METRICS).unlink(missing_ok=True)
    frame = with_findings(manifest, folder, info)
    checks = suite(params, info, great_expectations().expectations)
    outcomes, documents = run(checks, frame)

    metrics = figures(frame, info, folder, outcomes)
    with whole_folder(root / PAGES) as pages:
        page = validation_page(info, folder, frame, outcomes, metrics)
        (pages / "index.html").write_text(page, encoding="utf-8")
        (pages / "data-docs.html").write_text(documents, encoding="utf-8")
    failed = [outcome for outcome in outcomes if not outcome.holds]
    if failed:
        first, more = failed[0], f"; {len(failed) - 1} more failed" if len(failed) > 1 else ""
        sample = ", ".join(describe(frame, first.name, row) for row in first.rows[:3])
        raise ValidationFailed(
            f"expectation '{first.name}' failed: {first.means}, but {first.found}"
            f"{f', for instance {sample}' if sample else ''}{more}; see {PAGES}/index.html"
        )
    write_whole(root / METRICS, json.dumps(metrics, indent=1) + "\n")
    say(f"all {len(outcomes)} expectations hold for {len(frame):,} images: {PAGES}/index.html")


def read_manifest(folder: Path) -> pd.DataFrame:
    """The manifest as a table, one row an image, in the order of the splits and of their rows."""
    import pyarrow.parquet as pq

    try:
        with (folder / "manifest.parquet").open("rb") as file:
            table = pq.read_table(file)
            table.validate(full=True)  # texts that are no UTF-8 are an error only when they are read
            manifest: pd.DataFrame = table.to_pandas()
            return manifest
    except FileNotFoundError:
        raise DataError(f"{folder}: no manifest.parquet here; run `dvc repro prepare`") from None
    except Exception:  # a damaged file can make pyarrow raise anything
        raise DataError(f"{folder}/manifest.parquet: not a whole Parquet file; run `dvc repro -f prepare`") from None


def with_findings(manifest: pd.DataFrame, folder: Path, info: DatasetInfo) -> pd.DataFrame:
    """The manifest with columns for what a row alone does not say.

    `intact`: the arrays have the pixels and the label of this row. `repeats`: an earlier row has the same pixels.
    `splits_of_image`: number of splits with these pixels. `splits_of_group`: number of splits with images of its group.
    `label_share`: the label's share over an even share.
    """
    frame = manifest.reset_index(drop=True)
    missing = [column for column in COLUMNS if column not in frame.columns]
    if missing:
        raise ValidationFailed(f"expectation 'schema' failed: the manifest lacks the column {missing[0]}")
    frame["intact"] = _intact(frame, folder)
    frame["repeats"] = frame["sha256"].duplicated()
    frame["splits_of_image"] = frame.groupby("sha256")["split"].transform("nunique")
    in_group = frame["group"].astype(bool)
    frame["splits_of_group"] = frame.groupby("group")["split"].transform("nunique").where(in_group, 1).astype(int)
    if info.class_names:
        counts = frame.groupby("label")["label"].transform("count")
        frame["label_share"] = counts / (len(frame) / len(info.class_names))
    return frame


def _intact(frame: pd.DataFrame, folder: Path) -> pd.Series[bool]:
    intact = pd.Series(False, index=frame.index)
    for name in track(SPLITS, "checking arrays"):
        rows = frame[frame["split"] == name].sort_values("row")
        split = open_split(folder, name)
        if len(rows) != len(split) or not np.array_equal(rows["row"], np.arange(len(split))):
            continue
        step = images_within(1024, int(np.prod(split.images.shape[1:])), PART)
        same = [
            hashlib.sha256(image.data).hexdigest() == sha256
            for (images, _), start in zip(batches(split, step), range(0, len(split), step), strict=True)
            for image, sha256 in zip(images, rows["sha256"].iloc[start : start + step], strict=True)
        ]
        intact.loc[rows.index] = np.array(same) & (rows["label"].to_numpy() == split.labels)
    return intact


def run(checks: list[Check], frame: pd.DataFrame) -> tuple[list[Outcome], str]:
    """The outcome of every check, and Great Expectations' own Data Docs page as one file."""
    gx = great_expectations()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    # file names come from outside and Data Docs prints them as they are: escaped, they are text and no HTML
    shown = frame.assign(path=frame["path"].map(html.escape, na_action="ignore"))
    asset = context.data_sources.add_pandas("images").add_dataframe_asset("manifest")
    definition = gx.ValidationDefinition(
        name="manifest",
        data=asset.add_batch_definition_whole_dataframe("all"),
        suite=context.suites.add(gx.ExpectationSuite("manifest")),
    )
    for check in checks:
        check.expectation.meta = {"check": check.name}
        check.expectation.description = check.means
        definition.suite.add_expectation(check.expectation)
    result = context.validation_definitions.add(definition).run(
        batch_parameters={"dataframe": shown}, result_format={"result_format": "COMPLETE"}
    )
    found = {item.expectation_config.meta["check"]: item for item in result.results}
    return [_outcome(check, found[check.name], len(frame)) for check in checks], data_docs(result)


def _outcome(check: Check, item: Any, total: int) -> Outcome:
    facts = item.result
    if item.exception_info and item.exception_info.get("raised_exception"):
        found = f"it could not be evaluated: {item.exception_info.get('exception_message')}"
    elif "unexpected_count" in facts:
        count = facts["unexpected_count"]
        found = f"{count:,} of {total:,} images ({100 * count / total:.3g} %) break this"
    else:
        value = facts.get("observed_value")
        found = f"found {', '.join(map(str, value)) if isinstance(value, list) else f'{value:,.6g}'}"
    rows = facts.get("unexpected_index_list") or []
    return Outcome(check.name, check.means, bool(item.success), found, tuple(int(row) for row in rows[:SAMPLE]))


def data_docs(result: Any) -> str:
    """Great Expectations' page of the result as one file that loads nothing."""
    great_expectations()
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view.view import DefaultJinjaPageView

    for item in result.results:  # the renderer takes only Python's numbers
        value = item.result.get("observed_value")
        item.result["observed_value"] = value.item() if isinstance(value, np.generic) else value
        item.result.pop("unexpected_index_query", None)  # it lists every row of a large dataset
    # no time and no run id in the page, so that the same data give the same bytes
    result.meta.pop("run_id", None)
    result.meta.pop("batch_markers", None)
    result.results.sort(key=lambda item: str(item.expectation_config.meta["check"]))
    content = ValidationResultsPageRenderer(run_info_at_end=True).render(result)
    page: Any = DefaultJinjaPageView()
    return alone(str(page.render(content)))


def describe(frame: pd.DataFrame, check: str, row: int) -> str:
    """A manifest row for a message: the image's path in the source and its place in the arrays."""
    entry = frame.iloc[row]
    return f"{str(entry['path'])[:80]!r} (row {entry['row']} of {entry['split']})"


def figures(frame: pd.DataFrame, info: DatasetInfo, folder: Path, outcomes: list[Outcome]) -> dict[str, float | int]:
    """metrics/data.json: one level, numbers only."""
    facts = read_facts(folder)
    same = frame[frame["sha256"].duplicated(keep=False)].groupby("sha256")["label"].nunique()
    flat = int((frame["std"] == 0).sum())
    repeats = int(frame["repeats"].sum())
    return {
        "images": len(frame),
        **{f"{name}_images": info.counts[name] for name in SPLITS},
        "classes": len(info.class_names),
        **({"smallest_label_share": round(float(frame["label_share"].min()), 6)} if info.class_names else {}),
        "duplicates": repeats,
        "duplicate_share": round(repeats / len(frame), 6),
        "duplicates_with_other_labels": int((same > 1).sum()),
        "images_in_two_splits": int((frame["splits_of_image"] > 1).sum()),
        "flat_images": flat,
        "flat_share": round(flat / len(frame), 6),
        "mean_intensity": round(float(frame["mean"].mean()), 4),
        **({f"{name}_groups": info.groups[name] for name in SPLITS} if info.groups else {}),
        "left_out_of_training": len(facts.dropped),
        "unusable_files": len(facts.rejected),
        "expectations": len(outcomes),
        "expectations_failed": sum(not outcome.holds for outcome in outcomes),
    }


def great_expectations() -> Any:
    """The library, imported when it is needed, which takes seconds; without its telemetry and its log lines."""
    environment.settle(os.environ)
    logging.getLogger("great_expectations").setLevel(logging.CRITICAL)
    import great_expectations as gx
    import great_expectations.expectations

    return gx
