"""Great Expectations on a table with one row an image, which may be larger than memory.

The table is in a SQLite file, and the checks are SQL. Great Expectations leaves no project folder behind.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from densitywatch import environment
from densitywatch.data.image_table import Table, one_value
from densitywatch.data.validation.data_docs import data_docs
from densitywatch.files import is_full_disk

SAMPLE = 5
"""Rows that are kept of those that break a check."""
ROWS = 4096
"""Rows of a Parquet file that are read at a time."""


@dataclass(frozen=True)
class Check:
    """One expectation: its name in messages and pages, its meaning in words, and Great Expectations' object."""

    name: str
    means: str
    expectation: Any


@dataclass(frozen=True)
class Outcome:
    """The result of a check. `rows`: some of the rows that break it, as positions in the table."""

    name: str
    means: str
    holds: bool
    found: str
    rows: tuple[int, ...]


class NotATable(ValueError):
    """A Parquet file that is damaged, or that SQLite cannot hold."""


def add_parquet(table: Table, source: BinaryIO, added: Mapping[str, str]) -> list[str]:
    """Copy a Parquet file into the new table `images`, some rows at a time; returns the names of the file's columns.

    The column `position` counts the rows from 0. `added`: further columns and their SQL types. Raises NotATable.
    """
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(source)
        schema = file.schema_arrow
    except Exception as error:  # a damaged file can make pyarrow raise anything
        raise NotATable(" ".join(str(error).split())[:100]) from None
    every = ["position", *schema.names, *added]
    if len({column.lower() for column in every}) < len(every) or any("\0" in column for column in every):
        raise NotATable("two columns have the same name, but for capitals, or one that no table can have")
    if nested := [column.name for column in schema if column.type.num_fields]:
        raise NotATable(f"the column {nested[0]} holds lists or tables")
    kinds = [_kind(column.type) for column in schema]
    columns = [f"{_quoted(column)} {kind or 'TEXT'}" for column, kind in zip(schema.names, kinds, strict=True)]
    columns += [f"{_quoted(column)} {kind}" for column, kind in added.items()]
    values = ", ".join([*"?" * (1 + len(kinds)), *["NULL"] * len(added)])
    try:
        table.execute(f"CREATE TABLE images (position INTEGER PRIMARY KEY, {', '.join(columns)})")
        table.executemany(f"INSERT INTO images VALUES ({values})", _rows(file, kinds))  # noqa: S608 - marks alone
    except sqlite3.Error as error:  # too many columns, or a text of gigabytes
        if is_full_disk(error):
            raise
        raise NotATable(" ".join(str(error).split())[:100]) from None
    return list(schema.names)


def _rows(file: Any, kinds: list[str | None]) -> Iterator[tuple[Any, ...]]:
    position = 0
    try:
        for batch in file.iter_batches(batch_size=ROWS, use_threads=False):
            batch.validate(full=True)  # texts that are no UTF-8 are an error only when they are read
            columns = [
                column.to_pylist() if kind else [None if value is None else str(value) for value in column.to_pylist()]
                for column, kind in zip(batch.columns, kinds, strict=True)
            ]
            for row in zip(*columns, strict=True):
                yield (position, *row)
                position += 1
    except Exception as error:
        raise NotATable(" ".join(str(error).split())[:100]) from None


def _kind(kind: Any) -> str | None:
    """The SQL type of an arrow type; None for what SQLite has no type for."""
    import pyarrow as pa

    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "TEXT"
    if pa.types.is_boolean(kind):
        return "BOOLEAN"
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return "INTEGER"
    return "REAL" if pa.types.is_floating(kind) else None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def run(checks: list[Check], table: Table, file: Path) -> tuple[list[Outcome], str]:
    """The outcome of every check, and Great Expectations' own Data Docs page as one file.

    `table` is the connection to `file` by which its table `images` was written; a new transaction is open afterwards.
    """
    gx = great_expectations()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    table.execute("COMMIT")
    # nobody writes to it now: so no locks, which not every network disk has
    address = f"sqlite:///{file.absolute().as_uri()}?immutable=1&uri=true"
    source = context.data_sources.add_sqlite("file", connection_string=address)
    try:
        asset = source.add_table_asset("images", table_name="images")
        definition = gx.ValidationDefinition(
            name="manifest",
            data=asset.add_batch_definition_whole_table("all"),
            suite=context.suites.add(gx.ExpectationSuite("manifest")),
        )
        for check in checks:
            check.expectation.meta = {"check": check.name}
            check.expectation.description = check.means
            definition.suite.add_expectation(check.expectation)
        result = context.validation_definitions.add(definition).run(
            result_format={"result_format": "SUMMARY", "unexpected_index_column_names": ["position"]}
        )
    finally:
        # the file is removed soon, and whoever has it open keeps its space
        source.get_execution_engine().close()
        source.get_engine().dispose()
        table.execute("BEGIN")
    found = {item.expectation_config.meta["check"]: item for item in result.results}
    total = one_value(table, "SELECT count(*) FROM images")
    return [_outcome(check, found[check.name], total) for check in checks], data_docs(result)


def _outcome(check: Check, item: Any, total: int) -> Outcome:
    facts = item.result
    raised = _raised(item.exception_info or {})
    if raised is not None:
        found = f"it could not be evaluated: {raised}"
    elif "unexpected_count" in facts:
        count = facts["unexpected_count"] or 0  # of no rows
        found = f"{count:,} of {total:,} images ({100 * count / max(1, total):.3g} %) break this"
    else:
        value = facts.get("observed_value")
        listed = ", ".join(map(str, value)) if isinstance(value, list) else "nothing"
        found = f"found {f'{value:,.6g}' if isinstance(value, int | float) else listed}"
    rows = facts.get("partial_unexpected_index_list") or []
    return Outcome(check.name, check.means, bool(item.success), found, tuple(row["position"] for row in rows[:SAMPLE]))


def _raised(info: Mapping[str, Any]) -> str | None:
    """The message of an expectation's first error: alone, or one for each metric that it needs."""
    for one in (info, *info.values()):
        if isinstance(one, Mapping) and one.get("raised_exception"):
            return " ".join(str(one.get("exception_message")).split())
    return None


def great_expectations() -> Any:
    """The library, imported when it is needed, which takes seconds; without its telemetry and its log lines."""
    environment.settle(os.environ)
    logging.getLogger("great_expectations").setLevel(logging.CRITICAL)
    import great_expectations as gx
    import great_expectations.expectations

    # which sets its own level when it is imported, and tells of folders that it makes
    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.CRITICAL)
    return gx
