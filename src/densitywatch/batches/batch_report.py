"""report.html of a scored batch: one page in one file, made from the results folder alone.

Everything in it that came from outside (file names, reasons) is text: jinja2 escapes it, and characters that are
invisible or turn the reading direction are shown by their codes (text.visible).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from densitywatch.batches.drift_state import NOT_LOOKED, alarm_in_words
from densitywatch.batches.gallery import SHOWN
from densitywatch.batches.levels import at_levels, slider
from densitywatch.batches.photos import SIDE
from densitywatch.batches.results_folder import GALLERY, REPORT, SCORES, read_summary
from densitywatch.batches.verdicts import precision, read_verdicts
from densitywatch.data.inputs.clutter import skipped_line
from densitywatch.errors import DataError
from densitywatch.files import write_whole
from densitywatch.sizes import in_pixels, read_size
from densitywatch.templates import data_uri, page_templates
from densitywatch.text import one_line

QUARANTINE_SHOWN = 1000
WIDTH, HEIGHT = 640.0, 180.0


def write_batch_report(folder: Path) -> Path:
    """Write folder/report.html from the summary, scores, gallery and verdicts in `folder`.

    Raises DataError when one of them is missing or damaged.
    """
    summary = read_summary(folder)
    if summary is None:
        raise DataError(f"{folder}: its summary.json is missing or damaged; score the batch again")
    verdicts = read_verdicts(folder)
    page = page_templates(Path(__file__).parent, in_pixels=_in_pixels).get_template("batch_report.html.j2")
    with damage_as_error(folder):
        levels = slider(folder, summary)
        gallery = [
            row
            | at_levels(row, levels)
            | {"photo": picture_uri(row.get("photo")), "verdict": verdicts.get((row["path"], row["sha256"]))}
            for row in islice(gallery_rows(folder), SHOWN)
        ]
        text = page.render(
            summary=summary,
            drift_alarm=alarm_in_words(summary),
            not_looked=NOT_LOOKED,
            skipped=skipped_line(Counter(summary.get("skipped_kinds", {}))),
            gallery=gallery,
            photos=any(row["over"] for row in gallery),
            photo_side=SIDE,
            slider=levels,
            quarantined=list(islice(quarantined(folder), QUARANTINE_SHOWN)),
            bars=bars(summary["histogram"]),
            precision=precision(verdicts.get(key) for key in flagged(folder)),
        )
    write_whole(folder / REPORT, text, new_folder=False)
    return folder / REPORT


@contextmanager
def damage_as_error(folder: Path) -> Iterator[None]:
    """Turn pyarrow's errors about a table that is missing, cut off or of other columns into a DataError."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{error.filename or folder}: not there any more; score the batch again") from None
    except (pa.ArrowException, LookupError, TypeError, ValueError, OSError, jinja2.UndefinedError) as error:
        raise DataError(
            f"{folder}: its tables are damaged ({one_line(error)}); remove scores.parquet and score the batch again"
        ) from None


def gallery_rows(folder: Path) -> Any:
    """The gallery's rows with pictures as data URIs, the least usual first; one row group in memory at a time."""
    file = pq.ParquetFile(folder / GALLERY)
    for group in range(file.num_row_groups):
        for row in file.read_row_group(group).to_pylist():
            row["picture"], row["map"] = picture_uri(row["picture"]), picture_uri(row["map"])
            row["neighbours"] = [picture_uri(image) for image in row["neighbours"] or []]
            yield row


def flagged(folder: Path) -> Iterator[tuple[str, str]]:
    """(path, sha256) of the images called outliers, the least usual first; one row group in memory at a time."""
    file = pq.ParquetFile(folder / GALLERY)
    for group in range(file.num_row_groups):
        for row in file.read_row_group(group, columns=["path", "sha256", "outlier"]).to_pylist():
            if row["outlier"]:
                yield row["path"], row["sha256"]


def quarantined(folder: Path) -> Any:
    """(path, reason) of every file that was not scored, in the batch's order."""
    file = pq.ParquetFile(folder / SCORES)
    status = file.schema_arrow.get_field_index("status")
    for group in range(file.num_row_groups):
        known = file.metadata.row_group(group).column(status).statistics
        if known is not None and known.has_min_max and not known.min <= "quarantined" <= known.max:
            continue  # most groups of a large batch hold no quarantined file and are not read
        table = file.read_row_group(group, columns=["path", "status", "reason"])
        for row in table.filter(pc.field("status") == "quarantined").to_pylist():
            yield row["path"], row["reason"]


def picture_uri(image: bytes | None) -> str | None:
    """PNG or JPEG bytes as the address of an <img>."""
    if image is None:
        return None
    return data_uri(image, "image/png" if image.startswith(b"\x89PNG") else "image/jpeg")


def bars(histogram: dict[str, Any] | None) -> dict[str, Any] | None:
    """The histogram as shapes in a WIDTH x HEIGHT box: bars of the batch, an outline of the calibration images.

    A height is the square root of a share. Shares make a small batch comparable with a large calibration set; the root
    keeps single images visible.
    """
    if histogram is None:
        return None
    batch, reference = histogram["batch"], histogram["calibration"]
    shares = [[(count / max(1, sum(counts))) ** 0.5 for count in counts] for counts in (batch, reference)]
    top = max(max(shares[0]), max(shares[1])) or 1.0
    step = WIDTH / len(batch)
    outline = " ".join(
        f"{'M' if i == 0 else 'L'}{i * step:.1f} {HEIGHT * (1 - share / top):.1f} L{(i + 1) * step:.1f} "
        f"{HEIGHT * (1 - share / top):.1f}"
        for i, share in enumerate(shares[1])
    )
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "step": step,
        "batch": [
            {"x": i * step, "height": HEIGHT * share / top, "count": count}
            for i, (share, count) in enumerate(zip(shares[0], batch, strict=True))
        ],
        "outline": outline,
        "low": histogram["edges"][0],
        "high": histogram["edges"][-1],
    }


def _in_pixels(size: Any) -> str:
    """The size in a batch's identity, in words."""
    return in_pixels(read_size(size))
