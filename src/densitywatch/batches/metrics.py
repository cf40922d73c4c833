"""Figures of the watch for Prometheus, as a text file that node_exporter's textfile collector reads.

Each run of the scheduled job writes the file anew, by rename. Totals are those of the table of batches, so they go on
where an earlier process left them. Times are given as times: Prometheus knows what time it is when it asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densitywatch.batches.batch_table import Row
from densitywatch.errors import DataError

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

PREFIX = "densitywatch_"


def write_metrics(file: Path, rows: Sequence[Row], look: Mapping[str, Any], drift_alarm: float | None) -> None:
    """Write all figures to `file`. `look`: the fields of a Look. `drift_alarm`: inbox.drift_alarm.

    Raises DataError when the file cannot be written.
    """
    from prometheus_client import CollectorRegistry, write_to_textfile
    from prometheus_client.registry import Collector

    class Figures(Collector):
        def collect(self) -> Iterator[Metric]:
            return figures(rows, look, drift_alarm)

    registry = CollectorRegistry()
    registry.register(Figures())
    try:
        write_to_textfile(str(file), registry)
    except OSError as error:
        raise DataError(
            f"{file}: cannot be written ({error.strerror}); set inbox.metrics_file to a file in the folder that"
            " node_exporter reads"
        ) from None


def figures(rows: Sequence[Row], look: Mapping[str, Any], drift_alarm: float | None) -> Iterator[Metric]:
    """Every figure with its name, its meaning and its value; those of a batch are left out where there is none."""
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

    totals = {
        "batches": ("Batches scored.", len(rows)),
        "images": ("Images scored.", sum(row.scored for row in rows)),
        "flagged_images": ("Images called outliers.", sum(row.outliers for row in rows)),
        "quarantined_files": ("Files that could not be used.", sum(row.quarantined for row in rows)),
        "scoring_seconds": ("Seconds spent on scoring.", sum(row.seconds or 0.0 for row in rows)),
    }
    for name, (meaning, total) in totals.items():
        yield CounterMetricFamily(PREFIX + name, meaning, value=total)
    now: dict[str, tuple[str, float | None]] = {
        "inbox_waiting_batches": ("Batches in the inbox that are not scored.", look["waiting"]),
        "inbox_oldest_waiting_seconds": (
            "Age of the oldest of them when the job last looked; 0 where none waits.",
            max(0.0, look["time"] - look["oldest"]) if look["oldest"] is not None else 0.0,
        ),
        "inbox_failed_batches": ("Batches that failed, or were not as expected, at the last look.", look["failed"]),
        "last_look_timestamp_seconds": ("When the job last looked at the inbox.", look["time"]),
        "last_look_seconds": ("Seconds that it took, with scoring.", look["seconds"]),
        "last_success_timestamp_seconds": ("When a look last ended without a failure.", look["last_success"]),
        "drift_alarm_level": ("The drift evidence that raises an alarm.", 1 / drift_alarm if drift_alarm else None),
    }
    if rows:
        row = rows[-1]
        now |= {
            "last_batch_timestamp_seconds": ("When the newest batch was scored.", row.time),
            "last_batch_images": ("Images scored in the newest batch.", row.scored),
            "last_batch_flagged_share": ("Share of these that are flagged.", row.flagged_share),
            "last_batch_quarantined_share": ("Share of its files that could not be used.", row.quarantined_share),
            "last_batch_seconds": ("Seconds that its scoring took.", row.seconds),
            "drift_p_value": ("Small: the newest batch differs from the calibration images.", row.drift_p_value),
            "drift_evidence": ("Evidence that the stream has moved.", row.drift_evidence),
            "drift_alarm": ("1 while a drift alarm is on.", None if row.drift_alarm is None else int(row.drift_alarm)),
        }
    for name, (meaning, value) in now.items():
        if value is not None:
            yield GaugeMetricFamily(PREFIX + name, meaning, value=value)
