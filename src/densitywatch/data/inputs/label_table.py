"""A table of labels next to the images, with a column of file names and one of labels.

labels.csv or metadata.csv; or labels.jsonl or metadata.jsonl, in which each line is a JSON object.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence

from densitywatch.errors import DataError

TABLES = ("labels.csv", "labels.jsonl", "metadata.csv", "metadata.jsonl")
MUST_BE_LABELS = ("labels.csv", "labels.jsonl")
"""Who names a file so means labels; the others may be of other things."""
FILE_COLUMNS = (
    "file", "file_name", "filename", "file_path", "filepath", "path", "image", "image_name", "image_path", "img",
    "image_id", "name", "id",
)  # fmt: skip
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "classname", "category", "target")


def is_label_table(name: str) -> bool:
    """Whether the file `name`, a path below the source, has the name of a table of labels."""
    return name.rpartition("/")[2].lower() in TABLES


def read_label_table(data: bytes, name: str = TABLES[0]) -> dict[str, str]:
    """The label of each file, by its name in the table `name`.

    CSV is separated by commas, semicolons or tabs. Raises DataError when it is no such table.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError("its text is not UTF-8; save it in UTF-8") from None
    columns, rows = _json_lines(text) if name.lower().endswith(".jsonl") else _csv(text)
    plain = [column.strip().lower().replace(" ", "_") for column in columns]
    file = next((plain.index(name) for name in FILE_COLUMNS if name in plain), None)
    label = next((plain.index(name) for name in LABEL_COLUMNS if name in plain), None)
    if file is None or label is None:
        raise DataError("its first line names no columns `file` and `label`; name them so, or rename the table")
    found: dict[str, str] = {}
    for row in rows:
        if len(row) <= max(file, label) or not row[label].strip():
            continue
        name, told = row[file].strip().replace("\\", "/").removeprefix("./"), row[label].strip()
        if found.setdefault(name, told) != told:
            raise DataError(f"{name[:100]!r} has two labels, {found[name][:100]!r} and {told[:100]!r}; keep one")
    return found


def _csv(text: str) -> tuple[list[str], list[list[str]]]:
    """The names of the columns, and the rows."""
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise DataError(f"no table ({error}); save it as CSV in UTF-8") from None
    return (rows[0], rows[1:]) if rows else ([], [])


def _json_lines(text: str) -> tuple[list[str], list[list[str]]]:
    """The keys of the first object, and the values of every object for them; nothing is an empty value."""
    columns: list[str] = []
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise DataError(f"line {number} is no JSON object; write one an image, each on a line of its own")
        columns = columns or list(row)
        rows.append(["" if (value := row.get(key)) is None else str(value) for key in columns])
    return columns, rows


class Labels:
    """The labels that tables give to files; a table is about the folder that it is in."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, str]] = {}
        self._met: dict[str, set[str]] = {}

    def add(self, table: str, rows: Mapping[str, str]) -> None:
        folder = table.rpartition("/")[0]
        self._rows.setdefault(folder, {}).update(rows)
        self._met.setdefault(folder, set())

    def of(self, name: str) -> str | None:
        """The label of a file by the nearest table above it.

        A file is looked up by its path below the table's folder and by its name, both with and without the ending.
        """
        folder = name
        while folder:
            folder = folder.rpartition("/")[0]
            rows = self._rows.get(folder)
            if rows is None:
                continue
            below = name[len(folder) + 1 :] if folder else name
            own = name.rpartition("/")[2]
            for key in (below, own, below.rpartition(".")[0], own.rpartition(".")[0]):
                if key in rows:
                    self._met[folder].add(key)
                    return rows[key]
        return None

    def unknown(self) -> Sequence[str]:
        """Names in the tables for which there was no file."""
        return [name for folder, rows in self._rows.items() for name in rows if name not in self._met[folder]]
