"""`validate`: Great Expectations on the manifest, one row an image; a failed expectation stops the pipeline.

The checks are in manifest_suite.py, their limits in params.yaml (`expectations:`). Pixels are read once, to see that
the arrays still are what the manifest says. The manifest is in a SQLite file meanwhile, so memory does not grow with
the images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from densitywatch.data.dataset import SPLITS, DatasetInfo, Split, SplitName, open_split, read_facts, read_info
from densitywatch.data.image_table import Table, on_disk, one_value
from densitywatch.data.prepare import PREPARED
from densitywatch.data.validation.expectations import NotATable, Outcome, add_parquet, great_expectations, run
from densitywatch.data.validation.manifest_suite import COLUMNS, FINDINGS, suite
from densitywatch.data.validation.page import validation_page
from densitywatch.errors import DataError, ValidationFailed
from densitywatch.files import whole_folder, write_whole
from densitywatch.params import Params
from densitywatch.progress import say, track

PAGES = Path("reports/data")
METRICS = Path("metrics/data.json")


def validate(params: Params, root: Path) -> None:
    """Check `root`/data/prepared; write reports/data (pages) and metrics/data.json.

    Raises ValidationFailed, naming the first expectation that fails and some of its rows, after the pages are written;
    without pages where the manifest lacks a column or has no rows. metrics/data.json is only there when all
    expectations hold. Raises DataError when there is no whole dataset.
    """
    folder = root / PREPARED
    info = read_info(folder)
    (root / METRICS).unlink(missing_ok=True)
    with whole_folder(root / PAGES) as pages, on_disk(pages / "manifest.sqlite") as table:
        read_manifest(folder, table)
        find(table, folder, info)
        checks = suite(params, info, great_expectations().expectations)
        outcomes, documents = run(checks, table, pages / "manifest.sqlite")
        metrics = figures(table, info, folder, outcomes)
        page = validation_page(info, folder, table, outcomes, metrics)
        failed = [outcome for outcome in outcomes if not outcome.holds]
        sample = ", ".join(describe(table, row) for row in failed[0].rows[:3]) if failed else ""
        (pages / "index.html").write_text(page, encoding="utf-8")
        (pages / "data-docs.html").write_text(documents, encoding="utf-8")
    if failed:
        first, more = failed[0], f"; {len(failed) - 1} more failed" if len(failed) > 1 else ""
        raise ValidationFailed(
            f"expectation '{first.name}' failed: {first.means}, but {first.found}"
            f"{f', for instance {sample}' if sample else ''}{more}; see {PAGES}/index.html"
        )
    write_whole(root / METRICS, json.dumps(metrics, indent=1) + "\n")
    say(f"all {len(outcomes)} expectations hold for {metrics['images']:,} images: {PAGES}/index.html")


def read_manifest(folder: Path, table: Table) -> None:
    """The manifest as a new table `images`, one row an image, with empty columns for what `find` finds."""
    try:
        with (folder / "manifest.parquet").open("rb") as file:
            columns = add_parquet(table, file, FINDINGS)
    except FileNotFoundError:
        raise DataError(f"{folder}: no manifest.parquet here; run `dvc repro prepare`") from None
    except (OSError, NotATable):
        raise DataError(f"{folder}/manifest.parquet: not a whole Parquet file; run `dvc repro -f prepare`") from None
    missing = [column for column in COLUMNS if column not in columns]
    if missing:
        raise ValidationFailed(f"expectation 'schema' failed: the manifest lacks the column {missing[0]}")
    if not one_value(table, "SELECT count(*) FROM images"):
        raise ValidationFailed("expectation 'row_count' failed: the manifest has no images")


def find(table: Table, folder: Path, info: DatasetInfo) -> None:
    """Fill the columns for what a row alone does not say.

    `intact`: the arrays have the pixels and the label of this row. `repeats`: an earlier row has the same pixels.
    `splits_of_image`: number of splits with these pixels. `splits_of_group`: number of splits with images of its group.
    `label_share`: the label's share over an even share; nothing where there are no labels.
    """
    table.execute("UPDATE images SET intact = FALSE, repeats = FALSE, splits_of_group = 1")
    intact = ((place,) for name in track(SPLITS, "checking arrays") for place in _intact(table, folder, name))
    table.execute("CREATE TEMP TABLE intact (position INTEGER PRIMARY KEY)")
    table.executemany("INSERT INTO intact VALUES (?)", intact)
    table.execute("UPDATE images SET intact = TRUE FROM intact WHERE intact.position = images.position")
    table.execute("""CREATE TEMP TABLE same_pixels AS
        SELECT sha256, min(position) AS first, count(DISTINCT split) AS splits FROM images GROUP BY sha256""")
    table.execute("CREATE INDEX temp.by_sha256 ON same_pixels (sha256)")
    table.execute("""UPDATE images
        SET repeats = images.position > same_pixels.first, splits_of_image = same_pixels.splits
        FROM same_pixels WHERE same_pixels.sha256 = images.sha256""")
    table.execute("""CREATE TEMP TABLE in_group AS
        SELECT "group", count(DISTINCT split) AS splits FROM images WHERE "group" <> '' GROUP BY "group" """)
    table.execute('CREATE INDEX temp.by_group ON in_group ("group")')
    table.execute("""UPDATE images SET splits_of_group = in_group.splits
        FROM in_group WHERE in_group."group" = images."group" """)
    if info.class_names:
        even = one_value(table, "SELECT count(*) FROM images") / len(info.class_names)
        table.execute("CREATE TEMP TABLE of_label AS SELECT label, count(*) AS images FROM images GROUP BY label")
        table.execute(
            "UPDATE images SET label_share = of_label.images / ? FROM of_label WHERE of_label.label = images.label",
            (even,),
        )


def _intact(table: Table, folder: Path, name: SplitName) -> Iterator[int]:
    """The positions of the rows whose pixels and label are in the arrays; none where rows are missing or too many."""
    split = open_split(folder, name)
    numbers = """SELECT count(*), count(DISTINCT row), min(row), max(row), total(typeof(row) = 'integer')
        FROM images WHERE split = ?"""
    count = len(split)
    if table.execute(numbers, (name,)).fetchone() != (count, count, 0, count - 1, count):
        return
    rows = table.execute("SELECT position, sha256, label FROM images WHERE split = ? ORDER BY row", (name,))
    for image, its_label, (position, sha256, label) in zip(_images(split), split.labels, rows, strict=True):
        if hashlib.sha256(image).hexdigest() == sha256 and its_label == label:
            yield position


def _images(split: Split) -> Iterator[bytes]:
    """The pixels of each image. Ordinary reads: pages of a mapped file count as memory."""
    images = split.images
    assert isinstance(images, np.memmap)
    with Path(str(images.filename)).open("rb") as file:
        file.seek(images.offset)
        for _ in range(len(images)):
            yield file.read(images.nbytes // len(images))


def describe(table: Table, position: int) -> str:
    """A manifest row for a message: the image's path in the source and its place in the arrays."""
    path, split, row = table.execute("SELECT path, split, row FROM images WHERE position = ?", (position,)).fetchone()
    return f"{str(path)[:80]!r} (row {row} of {split})"


def figures(table: Table, info: DatasetInfo, folder: Path, outcomes: list[Outcome]) -> dict[str, float | int]:
    """metrics/data.json: one level, numbers only."""
    facts = read_facts(folder)
    images, repeats, in_two, flat, mean, smallest = table.execute("""SELECT
        count(*), total(repeats), total(splits_of_image > 1), total(std = 0), avg(mean), min(label_share)
        FROM images""").fetchone()
    other_labels = one_value(
        table,
        """SELECT count(*) FROM
        (SELECT 1 FROM images GROUP BY sha256 HAVING count(DISTINCT label) > 1 AND sha256 IS NOT NULL)""",
    )
    return {
        "images": images,
        **{f"{name}_images": info.counts[name] for name in SPLITS},
        "classes": len(info.class_names),
        **({"smallest_label_share": round(smallest or 0.0, 6)} if info.class_names else {}),
        "duplicates": int(repeats),
        "duplicate_share": round(repeats / images, 6),
        "duplicates_with_other_labels": other_labels,
        "images_in_two_splits": int(in_two),
        "flat_images": int(flat),
        "flat_share": round(flat / images, 6),
        "mean_intensity": round(mean or 0.0, 4),
        **({f"{name}_groups": info.groups[name] for name in SPLITS} if info.groups else {}),
        "left_out_of_training": len(facts.dropped),
        "unusable_files": len(facts.rejected),
        "expectations": len(outcomes),
        "expectations_failed": sum(not outcome.holds for outcome in outcomes),
    }
