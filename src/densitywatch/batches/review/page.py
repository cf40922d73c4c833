"""What the review page shows: flagged and drawn images one by one, the verdicts so far, and the page itself."""

from __future__ import annotations

import secrets
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from densitywatch.batches.batch_report import flagged, picture_uri
from densitywatch.batches.damage import damage_as_error
from densitywatch.batches.results_folder import GALLERY
from densitywatch.batches.review.random_draw import MOST, drawn_rows
from densitywatch.batches.verdicts import Key, Verdict, precision
from densitywatch.templates import page_templates
from densitywatch.text import visible

_SHOWN = ["path", "why", "reason", "p_value", "picture", "photo", "map", "neighbours"]


class ReviewImages:
    """The images that a person is asked about, numbered from 0: the flagged ones, the least usual first, then those
    drawn at random that are not flagged. A picture is read when it is asked for.

    Raises DataError when the gallery or the draw is missing or damaged; `item` does so as well.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with damage_as_error(folder):
            flagged_keys = list(flagged(folder))
            self._file = pq.ParquetFile(folder / GALLERY)
            self._starts = [0]
            """The first row of every row group."""
            for group in range(self._file.num_row_groups - 1):
                self._starts.append(self._starts[-1] + self._file.metadata.row_group(group).num_rows)
            marks = pq.read_table(folder / GALLERY, columns=["outlier"]).column("outlier").to_pylist()
            self._rows = [row for row, mark in enumerate(marks) if mark]
        self._drawn = drawn_rows(folder)
        among = set(flagged_keys)
        self.keys: list[Key] = flagged_keys + [key for key in self._drawn if key not in among]
        self._flagged = len(flagged_keys)

    def is_drawn(self, number: int) -> bool:
        """Whether the image was drawn at random, flagged or not."""
        return self.keys[number] in self._drawn

    def item(self, number: int) -> dict[str, Any]:
        """What the page shows of one image."""
        marks = {"flagged": number < self._flagged, "drawn": self.is_drawn(number)}
        if number >= self._flagged:
            row = self._drawn[self.keys[number]]
            shown: dict[str, Any] = {
                "why": None,
                "changed": row["reason"] and visible(row["reason"]),
                "map": None,
                "neighbours": [],
            }
            about = {"path": visible(row["path"]), "p_value": row["p_value"], "picture": picture_uri(row["picture"])}
            return {**about, **shown, **marks}
        row_number = self._rows[number]
        group = bisect_right(self._starts, row_number) - 1
        with damage_as_error(self._folder):
            rows = self._file.read_row_group(group, columns=_SHOWN)
            image = rows.slice(row_number - self._starts[group], 1).to_pylist()[0]
            return {
                "path": visible(image["path"]),
                "why": image["why"] and visible(image["why"]),
                "changed": image["reason"] and visible(image["reason"]),
                "p_value": image["p_value"],
                "picture": picture_uri(image.get("photo") or image["picture"]),
                "map": picture_uri(image["map"]),
                "neighbours": [picture_uri(neighbour) for neighbour in image["neighbours"] or []],
                **marks,
            }

    def state(self, verdicts: Mapping[Key, Verdict], trouble: str) -> dict[str, Any]:
        """The verdict of every image, the precision so far, the draw so far, and a sentence about what went wrong.

        `precision` is of the flagged images alone. `drawn` is of all images drawn at random, flagged or not.
        """
        given = [verdicts.get(key) for key in self.keys]
        of_draw = [verdicts.get(key) for key in self._drawn]
        return {
            "verdicts": given,
            "precision": precision(given[: self._flagged]),
            "drawn": {
                "images": len(of_draw),
                "reviewed": len([verdict for verdict in of_draw if verdict is not None]),
                "outliers": of_draw.count("outlier"),
            },
            "trouble": trouble,
        }


def render(name: str, token: str, state: Mapping[str, Any]) -> tuple[str, str]:
    """The page as HTML, and the Content-Security-Policy under which only its own script and style run."""
    nonce = secrets.token_urlsafe(16)
    template = page_templates(Path(__file__).parent).get_template("review.html.j2")
    html = template.render(name=name, token=token, nonce=nonce, state=state, most=MOST)
    policy = (
        f"default-src 'none'; connect-src 'self'; img-src data:; style-src 'nonce-{nonce}'; "
        f"script-src 'nonce-{nonce}'; frame-ancestors 'none'; base-uri 'none'"
    )
    return html, policy
