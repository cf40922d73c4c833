"""What the review page shows: the flagged images one by one, the verdicts so far, and the page itself."""

from __future__ import annotations

import secrets
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from densitywatch.batches.batch_report import damage_as_error, flagged, picture_uri
from densitywatch.batches.results_folder import GALLERY
from densitywatch.batches.verdicts import Key, Verdict, precision
from densitywatch.templates import page_templates
from densitywatch.text import visible


class FlaggedImages:
    """The flagged images of a batch, numbered from 0, the least usual first. A picture is read when it is asked for.

    Raises DataError when the gallery is missing or damaged; `item` does so as well.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with damage_as_error(folder):
            self.keys: list[Key] = list(flagged(folder))
            self._file = pq.ParquetFile(folder / GALLERY)
            self._starts = [0]
            """The first row of every row group."""
            for group in range(self._file.num_row_groups - 1):
                self._starts.append(self._starts[-1] + self._file.metadata.row_group(group).num_rows)
            marks = pq.read_table(folder / GALLERY, columns=["outlier"]).column("outlier").to_pylist()
            self._rows = [row for row, mark in enumerate(marks) if mark]

    def item(self, number: int) -> dict[str, Any]:
        """What the page shows of one image."""
        row = self._rows[number]
        group = bisect_right(self._starts, row) - 1
        with damage_as_error(self._folder):
            image = self._file.read_row_group(group).slice(row - self._starts[group], 1).to_pylist()[0]
            return {
                "path": visible(image["path"]),
                "why": image["why"] and visible(image["why"]),
                "changed": image["reason"] and visible(image["reason"]),
                "p_value": image["p_value"],
                "picture": picture_uri(image["picture"]),
                "map": picture_uri(image["map"]),
                "neighbours": [picture_uri(neighbour) for neighbour in image["neighbours"] or []],
            }

    def state(self, verdicts: Mapping[Key, Verdict], trouble: str) -> dict[str, Any]:
        """The verdict of every image, the precision so far, and a sentence about what went wrong."""
        given = [verdicts.get(key) for key in self.keys]
        return {"verdicts": given, "precision": precision(given), "trouble": trouble}


def render(name: str, token: str, state: Mapping[str, Any]) -> tuple[str, str]:
    """The page as HTML, and the Content-Security-Policy under which only its own script and style run."""
    nonce = secrets.token_urlsafe(16)
    template = page_templates(Path(__file__).parent).get_template("review.html.j2")
    html = template.render(name=name, token=token, nonce=nonce, state=state)
    policy = (
        f"default-src 'none'; connect-src 'self'; img-src data:; style-src 'nonce-{nonce}'; "
        f"script-src 'nonce-{nonce}'; frame-ancestors 'none'; base-uri 'none'"
    )
    return html, policy
