"""Verdicts as a table for a spreadsheet: it goes out with the images to judge and comes back with verdicts.

Names and reasons come from outside, and a spreadsheet runs what looks like a formula. Its separator depends on its
country. So a cell is made harmless for every separator, and a table is read however a spreadsheet saved it.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from densitywatch.batches.batch_report import flagged
from densitywatch.batches.damage import damage_as_error
from densitywatch.batches.results_folder import GALLERY
from densitywatch.batches.review.judging import give_verdicts, renew_report
from densitywatch.batches.review.random_draw import drawn, drawn_rows
from densitywatch.batches.verdicts import VERDICTS, Key, Verdict, read_verdicts
from densitywatch.errors import DataError
from densitywatch.files import whole_file
from densitywatch.text import visible

HEADER = ("number", "verdict", "path", "p_value", "why", "sha256", "chosen")
FLAGGED, AT_RANDOM = "flagged", "at random"
NEEDED = frozenset(["number", "verdict", "sha256"])
SEPARATORS = ",;\t|"
MOST_BYTES = 256 << 20
_SPREADSHEETS = {b"PK\x03\x04": "an .xlsx or .ods file", b"\xd0\xcf\x11\xe0": "an .xls file"}
_ADVICE = "save the table as CSV with its columns number, verdict and sha256, or write it anew with --to-csv"


def write_csv(folder: Path, target: Path) -> int:
    """Write the images to judge as a table with a column `verdict` to fill in; returns their number.

    The flagged ones come first. The column `chosen` says of each why it is there: flagged, drawn at random, or both.
    Raises DataError where `target` is there already: it may hold verdicts that nobody has taken yet.
    """
    if target.is_symlink() or target.exists():
        raise DataError(
            f"{target}: is there already and may hold verdicts; take them with --from-csv and remove the file, or"
            " choose another name"
        )
    verdicts, draw = read_verdicts(folder), drawn_rows(folder)
    with damage_as_error(folder):
        rows = pq.read_table(folder / GALLERY, columns=["path", "sha256", "p_value", "why", "outlier"]).to_pylist()
    marked = [row for row in rows if row["outlier"]]
    among = {(row["path"], row["sha256"]) for row in marked}
    marked += [{**row, "why": None, "outlier": False} for key, row in draw.items() if key not in among]
    with (
        whole_file(target, new_folder=False) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for number, row in enumerate(marked):
            key = (row["path"], row["sha256"])
            path, why = (harmless(visible(text or "")) for text in (row["path"], row["why"]))
            chosen = [FLAGGED] * row["outlier"] + [AT_RANDOM] * (key in draw)
            cells = [verdicts.get(key, ""), path, row["p_value"], why, harmless(row["sha256"]), " and ".join(chosen)]
            writer.writerow([number, *cells])
    return len(marked)


def harmless(text: str) -> str:
    """`text` with an apostrophe before everything that a spreadsheet would take for a formula.

    A formula begins with one of = + - @ or its full-width form; blanks and quotes before it are skipped. It may begin
    after any separator: a spreadsheet that separates by semicolons takes what follows one for a cell.
    """
    letters, at_start = [], True
    for letter in text:
        plain = unicodedata.normalize("NFKC", letter)
        if at_start and plain[:1] in ("=", "+", "-", "@"):
            letters.append("'")
        letters.append(letter)
        if letter in SEPARATORS or letter in "\r\n":
            at_start = True
        elif not (plain.isspace() or letter == '"' or unicodedata.category(letter) in ("Cc", "Cf", "Zs")):
            at_start = False
    marked = "".join(letters)
    return f"'{marked}" if marked[:1] in ("\t", "\r", "\n") else marked


def read_csv(folder: Path, source: Path) -> int:
    """Take the verdicts of a table that `write_csv` wrote; returns their number. Empty cells change nothing.

    The table may have another separator, encoding and line ends than it was written with. Raises DataError that names
    the line when a row is not of this batch or a verdict is unknown; then nothing is taken.
    """
    with damage_as_error(folder):
        keys, given = list(flagged(folder)), dict[Key, Verdict | None]()
    among = set(keys)
    keys += [key for key in drawn(folder) if key not in among]
    try:
        for line, row in _rows(_text(source), source):
            verdict = row.get("verdict", "").lower()
            if not verdict:
                continue
            number = row.get("number", "")
            key = keys[int(number)] if number.isdecimal() and len(number) < 10 and int(number) < len(keys) else None
            if key is None or key[1] != row.get("sha256", ""):
                raise DataError(f"{source}, line {line}: no image of this table's batch; write the table anew")
            given[key] = _verdict(verdict, f"{source}, line {line}")
    except csv.Error as error:
        raise DataError(f"{source}: not a readable CSV file ({error}); {_ADVICE}") from None
    give_verdicts(folder, given)
    renew_report(folder)
    return len(given)


def _text(source: Path) -> str:
    """The file's text. Bytes that are no UTF-8 can only be in names, which are not read back."""
    try:
        with source.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise DataError(f"{source}: not a readable CSV file ({error.strerror})") from None
    if len(data) > MOST_BYTES:
        raise DataError(f"{source}: not a readable CSV file (larger than {MOST_BYTES >> 20} MiB); {_ADVICE}")
    for start, what in _SPREADSHEETS.items():
        if data.startswith(start):
            raise DataError(f"{source}: not a readable CSV file ({what}); {_ADVICE}")
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def _rows(text: str, source: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Every row below the header as (its line, its cells by the header's names)."""
    text = text if "\n" in text else text.replace("\r", "\n")
    first, _, rest = text.partition("\n")
    before, separators = 0, SEPARATORS
    if said := re.fullmatch(r"\s*\"?sep=(.)\"?\s*", first):  # Excel's own line that names the separator
        before, separators, text = 1, said.group(1), rest
        first = rest.partition("\n")[0]
    for separator in separators:
        names = [name.strip().lower() for name in next(csv.reader([first.strip("\r")], delimiter=separator), [])]
        if NEEDED.issubset(names):
            break
    else:
        raise DataError(f"{source}: not a table of verdicts, its first line has not the columns; {_ADVICE}")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    next(reader)
    for cells in reader:
        yield before + reader.line_num, {name: cell.strip() for name, cell in zip(names, cells, strict=False)}


def _verdict(text: str, where: str) -> Verdict:
    for verdict in VERDICTS:
        if text == verdict:
            return verdict
    raise DataError(f"{where}: '{text[:40]}' is no verdict; it is one of {', '.join(VERDICTS)}, or empty")
