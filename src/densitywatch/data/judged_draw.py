"""The judged random draw of a drifted stream: which of its images calibrate, and on which the gate checks p-values.

A p-value ranks an image among the calibration images. So these, and the images that the gate checks p-values on, must
come from the stream as it is now. The draw gives both: a fixed part of it, by hash, is for the gate.

Images of two drifts are two streams and are never put together. Those of the newest drift that has FEWEST of them are
taken. All others are trained on alone.
"""

from __future__ import annotations

import hashlib

from densitywatch.data.image_table import Table
from densitywatch.data.training_only import with_mark

FEWEST = 200
"""Images of a judged draw, each group counted once, that take the place of the calibration images."""
FOR_GATE = 0.25
"""The share of the draw that calibrates nothing and that the gate measures p-values on."""
PART = "judged "
"""The part of an image of a judged draw: this and the number of its drift. No source has a part with this name."""


def part_of(drift: int) -> str:
    """The part of an image of the judged draw of this drift, until it is placed or where it is left to training."""
    return f"{PART}{drift}"


def place_draw(table: Table, seed: int) -> None:
    """Give the images of the newest large enough draw the part `calibration` or `gate`, and mark all others.

    In the table `member`. Images that stay together, because they have the same pixels or are of one group, count once,
    and with an image of the source's test or validation part they count for nothing, because they stay there. A person
    looked at each image of a draw: so few are in memory.
    """
    counted = table.execute(
        """SELECT part, count(DISTINCT set_number) FROM member WHERE part LIKE ?
        AND set_number NOT IN (SELECT set_number FROM member WHERE part IN ('test', 'validation')) GROUP BY part""",
        (f"{PART}%",),
    )
    newest = max((part for part, count in counted if count >= FEWEST), key=_number, default=None)
    judged = table.execute(
        """SELECT part, path, coalesce(nullif(group_name, ''), sha256), set_number, sha256, number FROM member
        WHERE part LIKE ?""",
        (f"{PART}%",),
    ).fetchall()
    for part, path, name, *key in judged:
        if part == newest:
            place = "gate" if _share(name, seed) < FOR_GATE else "calibration"
            change, value = "UPDATE member SET part = ?", place
        else:
            change, value = "UPDATE member SET marked = 1, path = ?", with_mark(path)
        table.execute(change + " WHERE set_number = ? AND sha256 = ? AND number = ?", (value, *key))


def _number(part: str) -> int:
    return int(part.removeprefix(PART))


def _share(name: str, seed: int) -> float:
    """0 to 1, the same for a group whatever images join it."""
    return int(hashlib.sha256(f"{seed}:judged draw:{name}".encode()).hexdigest()[:13], 16) / 16**13
