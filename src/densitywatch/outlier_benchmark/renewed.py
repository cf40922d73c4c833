"""Whether the calibration images are of another stream than the test images.

Images of drifted batches that a person judged may take the place of all calibration images (data/accepted.py). The test
images stay those of the source. Then a test image and a calibration image are not exchangeable. What rests on ranks of
test images among calibration images says nothing about the detector, so the benchmark leaves it out.
"""

from __future__ import annotations

from pathlib import Path

ACCEPTED = "accepted/"
"""How the path of an accepted image begins in manifest.parquet."""
WHY = (
    "what the rule finds, false alarms and rates (the calibration images are accepted ones of drifted batches and the"
    " test images are of the source, so test images do not rank fairly among them)"
)


def is_renewed(prepared: Path) -> bool:
    """Whether all calibration images, and not all test images, are accepted ones; False without a manifest."""
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(prepared / "manifest.parquet", columns=["path", "split"])
    except FileNotFoundError:
        return False
    accepted: dict[str, list[bool]] = {"calibration": [], "test": []}
    for path, split in zip(table.column("path").to_pylist(), table.column("split").to_pylist(), strict=True):
        if split in accepted:
            accepted[split].append(path.startswith(ACCEPTED))
    return all(accepted["calibration"]) and not all(accepted["test"])
