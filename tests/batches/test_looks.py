"""What a look at the inbox leaves: a note for the status, and figures for Prometheus."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from densitywatch.batches.inbox import Batch
from densitywatch.batches.looks import LOOK, Look, note_look, read_look
from densitywatch.errors import DataError, ParamsError
from densitywatch.params import Params, load_params
from tests.batches.test_over_time import row, write_table

PROJECT = Path(__file__).parents[2]
DASHBOARD = PROJECT / "pipelines" / "grafana.json"


def with_inbox(params: Params, **keys: Any) -> Params:
    return params.model_copy(update={"inbox": params.inbox.model_copy(update=keys)})


def looked(params: Params, root: Path, ended: float = 1000.0, failures: tuple[str, ...] = ()) -> Look:
    left = [Batch("a", "a", "ready", 3, "", 400.0), Batch("b", "b", "waiting", 3, "", None)]
    return note_look(params, root, started=ended - 20.0, ended=ended, scored=2, left=left, failures=failures)


def figures(file: Path) -> dict[str, float]:
    """Every figure of a text file for Prometheus, read by the library's own parser."""
    families = text_string_to_metric_families(file.read_text())
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_a_look_is_kept_and_a_failure_leaves_the_time_of_the_last_success(params: Params, tmp_path: Path) -> None:
    results = tmp_path / "data" / "outliers"
    assert read_look(results) is None
    assert looked(params, tmp_path, 1000.0) == read_look(results)
    look = looked(params, tmp_path, 2000.0, failures=("a (broken)",))
    assert (look.last_success, look.failed, look.failures) == (1000.0, 1, ["a (broken)"])
    assert (look.waiting, look.oldest, look.seconds) == (2, 400.0, 20.0)
    (results / LOOK).write_text("{}")
    assert read_look(results) is None
    assert looked(params, tmp_path, 3000.0, failures=("x" * 5000,) * 50).last_success is None
    assert read_look(results) is not None


def test_a_look_makes_the_page_over_time_where_there_is_none_yet(params: Params, tmp_path: Path) -> None:
    page = tmp_path / "data" / "outliers" / "index.html"
    looked(params, tmp_path)
    assert "No batch has been scored yet." in page.read_text()
    page.write_text("of the last batch")
    looked(params, tmp_path)
    assert page.read_text() == "of the last batch"


def test_no_metrics_are_written_by_default(params: Params, tmp_path: Path) -> None:
    looked(params, tmp_path)
    assert list(tmp_path.rglob("*.prom")) == []


def test_prometheus_reads_every_figure_and_totals_are_those_of_all_batches(params: Params, tmp_path: Path) -> None:
    results = tmp_path / "data" / "outliers"
    write_table(results, [row(1, outliers=7, seconds=3.5), row(2, outliers=49, seconds=4.0, drift_alarm=True)])
    (tmp_path / "out").mkdir()
    looked(with_inbox(params, metrics_file="out/watch.prom", drift_alarm=0.01), tmp_path)
    found = figures(tmp_path / "out" / "watch.prom")
    assert found == {
        "densitywatch_batches_total": 2,
        "densitywatch_images_total": 196,
        "densitywatch_flagged_images_total": 56,
        "densitywatch_quarantined_files_total": 4,
        "densitywatch_scoring_seconds_total": 7.5,
        "densitywatch_inbox_waiting_batches": 2,
        "densitywatch_inbox_oldest_waiting_seconds": 600,
        "densitywatch_inbox_failed_batches": 0,
        "densitywatch_last_look_timestamp_seconds": 1000,
        "densitywatch_last_look_seconds": 20,
        "densitywatch_last_success_timestamp_seconds": 1000,
        "densitywatch_drift_alarm_level": 100,
        "densitywatch_last_batch_timestamp_seconds": 1.7e9 + 1800,
        "densitywatch_last_batch_images": 98,
        "densitywatch_last_batch_flagged_share": 0.5,
        "densitywatch_last_batch_quarantined_share": 0.02,
        "densitywatch_last_batch_seconds": 4.0,
        "densitywatch_drift_p_value": 0.5,
        "densitywatch_drift_evidence": 0.3,
        "densitywatch_drift_alarm": 1,
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["watch.prom"]


def test_an_inbox_that_never_had_a_batch_has_figures_too(params: Params, tmp_path: Path) -> None:
    looked(with_inbox(params, metrics_file="watch.prom", drift_alarm=None), tmp_path)
    found = figures(tmp_path / "watch.prom")
    assert found["densitywatch_batches_total"] == 0
    assert not [name for name in found if "last_batch" in name or "drift" in name]


def test_a_metrics_file_that_cannot_be_written_is_named(params: Params, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere/watch\.prom: cannot be written \(No such file or directory\); set"):
        looked(with_inbox(params, metrics_file="nowhere/watch.prom"), tmp_path)
    assert read_look(tmp_path / "data" / "outliers") is not None


@pytest.mark.parametrize("name", ["watch.txt", ".prom", "folder/.prom", "watch.prom/"])
def test_a_name_that_node_exporter_would_not_read_is_refused(name: str, tmp_path: Path) -> None:
    text = (PROJECT / "params.yaml").read_text()
    changed, several = re.subn(r"(?m)^  metrics_file: \S+", f"  metrics_file: {name}", text)
    assert several == 1
    (tmp_path / "params.yaml").write_text(changed)
    with pytest.raises(ParamsError, match=r"inbox\.metrics_file"):
        load_params(tmp_path / "params.yaml")


def test_the_dashboard_asks_for_figures_that_exist_and_shows_every_one(params: Params, tmp_path: Path) -> None:
    write_table(tmp_path / "data" / "outliers", [row(1, drift_alarm=False, seconds=1.0)])
    looked(with_inbox(params, metrics_file="watch.prom"), tmp_path)
    written = set(figures(tmp_path / "watch.prom"))
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    asked = {name for query in queries for name in re.findall(r"\bdensitywatch_\w+", query)}
    assert len(queries) >= 8
    assert asked <= written
    assert written - asked == {"densitywatch_scoring_seconds_total", "densitywatch_last_look_seconds"}
    places = [tuple(panel["gridPos"][key] for key in ("x", "y")) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {"${source}"}
    assert [one["name"] for one in dashboard["templating"]["list"]] == ["source"]
