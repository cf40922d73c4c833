"""The table of verdicts in spreadsheets: nothing in it is run, and it comes back however it was saved."""

from __future__ import annotations

import csv
import errno
import io
from pathlib import Path

import pytest

from densitywatch.batches.batch_report import flagged
from densitywatch.batches.review import verdict_table
from densitywatch.batches.review.random_draw import draw
from densitywatch.batches.review.verdict_table import harmless, read_csv, write_csv
from densitywatch.batches.score_batch import score_source
from densitywatch.batches.verdicts import read_verdicts
from densitywatch.errors import DataError
from densitywatch.params import Params
from tests.detector.standin import Brightness, fill, png

SIGNS = "=+-@＝＋－＠﹦﹢﹣﹫"
NAMES = [
    *(f"{sign}cmd|calc" for sign in SIGNS),
    *(f"{blank}=1+1" for blank in (" ", "  ", "\t", "\r", "\n", "\u3000", "\xa0", "\u200b", "\ufeff", '"', "'")),
    "a;=1+1",
    "a; ＝1+1",
    "a\t=1+1",
    "a,@SUM(1)",
    'a";"=1+1',
    "a\n=1+1",
    "\ttab",
]


def formulas(cell: str) -> list[str]:
    """The parts of a cell, cut at any separator, that a spreadsheet would run."""
    found = []
    for separator in ",;\t|\r\n":
        for part in cell.split(separator):
            bare = part.strip().strip('" \u200b\ufeff\xa0\u3000')
            if bare[:1] and bare[0] in SIGNS:
                found.append(part)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_no_part_of_a_cell_is_a_formula_for_any_separator(name: str) -> None:
    assert formulas(harmless(name)) == []
    assert harmless(name).replace("'", "") == name.replace("'", "")


@pytest.mark.parametrize("name", ["a.png", "a-b.png", "a+b=c.png", "2024-05-01/x.png", "x@y.png", "a b.png"])
def test_ordinary_names_stay_as_they_are(name: str) -> None:
    assert harmless(name) == name


@pytest.fixture
def spreadsheet_batch(params: Params, tmp_path: Path) -> Path:
    """Results with four flagged images, three of them with names that a spreadsheet would run."""
    batch = fill(tmp_path / "batch", 12, bright=1)
    for name in (" =1+1.png", "＝1+1.png", "grün;=1+1 €.png"):
        (batch / name).write_bytes(png(220))
    score_source("batch", params, tmp_path, tmp_path / "out", Brightness())
    return tmp_path / "out"


def test_the_table_that_is_written_holds_no_formula(spreadsheet_batch: Path, tmp_path: Path) -> None:
    assert write_csv(spreadsheet_batch, tmp_path / "table.csv") == 4
    with (tmp_path / "table.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert [cell for cell in cells if formulas(cell)] == []


@pytest.mark.parametrize(
    ("separator", "encoding", "ends", "before"),
    [
        (";", "utf-8", "\n", ""),
        (";", "cp1252", "\r\n", ""),
        (";", "utf-8-sig", "\r\n", ""),
        ("\t", "utf-16", "\r\n", ""),
        (",", "utf-8-sig", "\r\n", ""),
        (";", "utf-8", "\r\n", "sep=;\r\n"),
        (",", "utf-8", "\r", ""),
    ],
)
def test_a_table_comes_back_however_a_spreadsheet_saved_it(
    spreadsheet_batch: Path, tmp_path: Path, separator: str, encoding: str, ends: str, before: str
) -> None:
    table = tmp_path / "table.csv"
    write_csv(spreadsheet_batch, table)
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    rows[1][1], rows[3][1] = "Outlier", "fine "
    for row in rows[1:]:
        row[3] = row[3].replace(".", ",")  # as the country writes numbers
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator, lineterminator=ends).writerows(rows)
    table.write_bytes((before + text.getvalue()).encode(encoding, "replace"))
    assert read_csv(spreadsheet_batch, table) == 2
    assert sorted(read_verdicts(spreadsheet_batch).values()) == ["fine", "outlier"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"PK\x03\x04rest of it", "an .xlsx or .ods file.*save the table as CSV"),
        (b"\xd0\xcf\x11\xe0rest", "an .xls file.*save the table as CSV"),
        (b"number:verdict:sha256\n", "its first line has not the columns; save the table as CSV"),
        (b"number;verdict;path\n0;fine;a\n", "its first line has not the columns"),
        (b"", "its first line has not the columns"),
        (b'number,verdict,sha256\n0,fine,"' + b"x" * 200_000, "not a readable CSV file"),
        (b"sep=;\nnumber;verdict;sha256\n0;fine;00\n", "line 3: no image of this table's batch"),
        (b"number;verdict;sha256\n99999999999999999999;fine;00\n", "line 2: no image of this table's batch"),
    ],
)
def test_a_table_that_cannot_be_taken_is_refused_in_one_line_that_says_what_to_do(
    spreadsheet_batch: Path, tmp_path: Path, content: bytes, complaint: str
) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(DataError, match=complaint) as refused:
        read_csv(spreadsheet_batch, tmp_path / "table.csv")
    assert "\n" not in str(refused.value)
    assert read_verdicts(spreadsheet_batch) == {}


def table_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_goes_out_and_comes_back_with_verdicts(scored: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    assert write_csv(scored, table) == 4
    rows = table_rows(table)
    assert [row["number"] for row in rows] == ["0", "1", "2", "3"]
    assert rows[0]["path"].startswith("'=<img")
    rows[0]["verdict"], rows[2]["verdict"] = "outlier", " Fine "
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    assert read_csv(scored, table) == 2
    assert sorted(read_verdicts(scored).values()) == ["fine", "outlier"]
    write_csv(scored, tmp_path / "again.csv")
    assert [row["verdict"] for row in table_rows(tmp_path / "again.csv")] == ["outlier", "", "fine", ""]


def test_a_table_that_is_there_is_not_overwritten(scored: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("a person's verdicts")
    with pytest.raises(DataError, match=r"is there already and may hold verdicts; take them with --from-csv"):
        write_csv(scored, table)
    assert table.read_text() == "a person's verdicts"


def test_a_table_that_cannot_be_written_whole_is_not_there(
    scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(text: str) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(verdict_table, "harmless", full)
    with pytest.raises(DataError, match="the disk is full"):
        write_csv(scored, tmp_path / "table.csv")
    assert [path.name for path in tmp_path.iterdir() if "table" in path.name] == []


def test_the_table_says_which_images_were_drawn_at_random_and_takes_their_verdicts(
    scored: Path, tmp_path: Path
) -> None:
    table, keys = tmp_path / "table.csv", draw(scored, 8, tmp_path, seed=1)
    among = list(flagged(scored))
    write_csv(scored, table)
    rows = table_rows(table)
    assert [row["chosen"] for row in rows[:4]] == [
        "flagged and at random" if key in keys else "flagged" for key in among
    ]
    assert [row["chosen"] for row in rows[4:]] == ["at random"] * len(set(keys) - set(among))
    rows[-1]["verdict"] = "fine"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    assert read_csv(scored, table) == 1
    last = [key for key in keys if key not in among][-1]
    assert read_verdicts(scored) == {last: "fine"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("number,verdict,sha256\n0,fine,0000\n", "line 2: no image of this table's batch"),
        ("number,verdict,sha256\n77,fine,0000\n", "line 2: no image of this table's batch"),
        ("number,verdict,sha256\n{number},perhaps,{digest}\n", "line 2: 'perhaps' is no verdict"),
        ("\0\0", "not a table of verdicts"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_and_nothing_is_taken(
    scored: Path, tmp_path: Path, text: str, complaint: str
) -> None:
    write_csv(scored, tmp_path / "good.csv")
    digest = table_rows(tmp_path / "good.csv")[0]["sha256"]
    table = tmp_path / "table.csv"
    table.write_text(text.format(number=0, digest=digest))
    with pytest.raises(DataError, match=complaint):
        read_csv(scored, table)
    assert read_verdicts(scored) == {}
    with pytest.raises(DataError, match="not a readable CSV file"):
        read_csv(scored, tmp_path / "missing.csv")
