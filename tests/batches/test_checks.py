from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densitywatch.batches import chunks
from densitywatch.batches.checks import validate_batch
from densitywatch.batches.score_batch import score_source
from densitywatch.errors import DataError, ValidationFailed
from densitywatch.params import Params
from densitywatch.tracking.runs import log_batch, open_client, tracking_uri
from tests.detector.standin import Brightness, fill, png


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    return fill(tmp_path / "batch", 18, bright=2)


def scored(params: Params, root: Path) -> dict[str, Any]:
    return score_source("batch", params, root, root / "out", Brightness())


def test_an_ordinary_batch_meets_every_expectation(params: Params, batch: Path, tmp_path: Path) -> None:
    (batch / "<script>alert(1)<.png").write_bytes(b"")
    summary = scored(params, tmp_path)
    outcomes = validate_batch(tmp_path / "out", summary["files"], params)
    assert [outcome.name for outcome in outcomes] == [
        "schema", "rows", "path_given", "whole", "readable", "not_repeated"
    ]  # fmt: skip
    assert all(outcome.holds for outcome in outcomes)
    assert "<script>alert(1)" not in (tmp_path / "out" / "validation.html").read_text()


def test_a_batch_with_labels_meets_every_expectation(params: Params, batch: Path, tmp_path: Path) -> None:
    class Labelled(Brightness):
        class_names = ("shirt",)

        def score(self, images: Any) -> Any:
            n = len(images)
            labels = {"label": np.zeros(n, int), "label_probability": np.ones(n), "label_p_value": np.full(n, 0.5)}
            return replace(super().score(images), **labels)

    summary = score_source("batch", params, tmp_path, tmp_path / "out", Labelled())
    outcomes = validate_batch(tmp_path / "out", summary["files"], params)
    assert [outcome.name for outcome in outcomes if not outcome.holds] == []


def test_a_batch_of_mostly_broken_files_fails_by_name_and_keeps_its_results(
    params: Params, batch: Path, tmp_path: Path
) -> None:
    for i in range(10):
        (batch / f"broken{i}.png").write_bytes(b"x")
    summary = scored(params, tmp_path)
    with pytest.raises(ValidationFailed, match=r"'readable' failed: at most 0.2 of the files.*but 10 of 30"):
        validate_batch(tmp_path / "out", summary["files"], params)
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_camera_that_sends_one_image_again_and_again_is_noticed(params: Params, batch: Path, tmp_path: Path) -> None:
    for i in range(10):
        (batch / f"same{i}.png").write_bytes(png())
    summary = scored(params, tmp_path)
    with pytest.raises(ValidationFailed, match="'not_repeated' failed"):
        validate_batch(tmp_path / "out", summary["files"], params)


def test_a_lost_row_or_a_row_without_reason_is_noticed(params: Params, batch: Path, tmp_path: Path) -> None:
    (batch / "broken.png").write_bytes(b"x")
    summary = scored(params, tmp_path)
    with pytest.raises(ValidationFailed, match="'rows' failed: every file has its row, but found 21"):
        validate_batch(tmp_path / "out", summary["files"] + 1, params)
    table = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    table.assign(reason=None).to_parquet(tmp_path / "out" / "scores.parquet")
    with pytest.raises(ValidationFailed, match="'whole' failed"):
        validate_batch(tmp_path / "out", summary["files"], params)


@pytest.mark.parametrize(
    ("column", "value", "whole"),
    [
        ("score", "abc", False), ("score", float("inf"), False), ("score", None, False), ("score", -(2**63), True),
        ("p_value", "0 is no p", False), ("p_value", 0.0, False), ("p_value", float("nan"), False),
    ],
)  # fmt: skip
def test_a_score_or_p_value_that_is_no_number_is_noticed(
    params: Params, batch: Path, tmp_path: Path, column: str, value: Any, whole: bool
) -> None:
    summary = scored(params, tmp_path)
    file = tmp_path / "out" / "scores.parquet"
    table = pq.read_table(file)
    changed = table.set_column(table.schema.get_field_index(column), column, pa.array([value] * len(table)))
    pq.write_table(changed, file)
    if whole:
        assert all(outcome.holds for outcome in validate_batch(tmp_path / "out", summary["files"], params))
    else:
        with pytest.raises(ValidationFailed, match="'whole' failed"):
            validate_batch(tmp_path / "out", summary["files"], params)


def test_a_table_without_rows_of_a_batch_with_files_is_noticed(params: Params, batch: Path, tmp_path: Path) -> None:
    summary = scored(params, tmp_path)
    file = tmp_path / "out" / "scores.parquet"
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    with pytest.raises(ValidationFailed, match="'rows' failed: every file has its row, but found 0"):
        validate_batch(tmp_path / "out", summary["files"], params)


def test_a_check_leaves_no_file_and_keeps_none_open(params: Params, batch: Path, tmp_path: Path) -> None:
    summary = scored(params, tmp_path)
    validate_batch(tmp_path / "out", summary["files"], params)
    before = {path.name for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / "validation.html").unlink()
    validate_batch(tmp_path / "out", summary["files"], params)
    assert {path.name for path in (tmp_path / "out").iterdir()} == before
    links = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert not [link for link in links if "scores.parquet" in str(link.readlink())]


def test_a_row_that_is_lost_on_the_way_to_the_table_is_noticed(
    params: Params, batch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = chunks.write_chunk
    monkeypatch.setattr(chunks, "write_chunk", lambda path, table: write(path, table.slice(1)))
    summary = scored(params, tmp_path)
    with pytest.raises(ValidationFailed, match="'rows' failed: every file has its row, but found 17"):
        validate_batch(tmp_path / "out", summary["files"], params)


def test_an_empty_batch_is_acceptable_and_a_missing_one_is_not(params: Params, tmp_path: Path) -> None:
    (tmp_path / "batch").mkdir()
    summary = scored(params, tmp_path)
    assert validate_batch(tmp_path / "out", summary["files"], params) == []
    with pytest.raises(DataError, match="no whole results"):
        validate_batch(tmp_path / "nowhere", 3, params)


def test_the_same_results_have_one_run_in_mlflow(params: Params, batch: Path, tmp_path: Path) -> None:
    summary = scored(params, tmp_path)
    run_id = log_batch(summary, params, tmp_path)
    assert log_batch(scored(params, tmp_path), params, tmp_path) == run_id
    (batch / "another.png").write_bytes(png(78))
    other = scored(params, tmp_path)
    with ThreadPoolExecutor(4) as jobs:
        at_once = list(jobs.map(lambda _: log_batch(other, params, tmp_path), range(4)))
    assert len({*at_once, run_id}) == 2
    client = open_client(tracking_uri(params, tmp_path))
    run = client.get_run(run_id)
    assert run.data.metrics["outliers"] == 2
    assert run.info.status == "FINISHED"
    assert {item.path for item in client.list_artifacts(run_id, "batch")} == {"batch/report.html", "batch/summary.json"}
    (batch / "more.png").write_bytes(png(77))
    assert log_batch(scored(params, tmp_path), params, tmp_path) != run_id


@pytest.mark.parametrize("damage", ["no UTF-8", "status", "sha256"])
def test_a_table_of_scores_that_is_damaged_is_one_sentence(
    params: Params, batch: Path, tmp_path: Path, damage: str
) -> None:
    summary = scored(params, tmp_path)
    file = tmp_path / "out" / "scores.parquet"
    table = pq.read_table(file)
    if damage == "no UTF-8":
        bad = pa.array([b"\x80.png"] * len(table), pa.binary()).cast(pa.string(), safe=False)
        table = table.set_column(table.schema.get_field_index("path"), "path", bad)
    else:
        table = table.drop_columns([damage])
    pq.write_table(table, file)
    with pytest.raises(DataError, match="no whole results of a batch here"):
        validate_batch(tmp_path / "out", summary["files"], params)
