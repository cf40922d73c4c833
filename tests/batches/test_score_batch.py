from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from densitywatch.batches import chunks
from densitywatch.batches import results as outlier_results
from densitywatch.batches.results_folder import batch_name, results_folder
from densitywatch.batches.score_batch import ScoreOptions, score_source
from densitywatch.batches.verdicts import read_verdicts, write_verdicts
from densitywatch.data.decoding.images import decode_picture
from densitywatch.detector import conformal
from densitywatch.errors import DataError, ModelError, OutliersFound, ParamsError
from densitywatch.models import pixelcnn
from densitywatch.models.storage import save_model
from densitywatch.params import Params
from tests.detector.standin import Brightness, fill, png

COLUMNS = ["path", "sha256", "status", "reason", "bits_per_dim", "score", "p_value", "outlier"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = fill(tmp_path / "batch", 40, bright=4)
    (folder / "broken.png").write_bytes(png()[:60])
    (folder / "text.png").write_text("no image")
    (folder / "_SUCCESS").touch()
    return folder


def results(out: Path) -> dict[str, bytes]:
    """All that a job promises to be the same."""
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.name != "run.json"}


def test_every_file_has_its_row_and_the_broken_ones_a_reason(params: Params, source: Path, tmp_path: Path) -> None:
    summary = score_source("batch", params, tmp_path, None, Brightness())
    out = tmp_path / "data/outliers/batch"
    assert summary["folder"] == str(out)
    table = pd.read_parquet(out / "scores.parquet")
    assert list(table) == COLUMNS
    assert sorted(table.path) == sorted(path.name for path in source.iterdir() if path.name != "_SUCCESS")
    assert dict(table.status.value_counts()) == {"scored": 44, "quarantined": 2}
    scored, quarantined = table[table.status == "scored"], table[table.status == "quarantined"]
    assert scored[["bits_per_dim", "score", "p_value"]].notna().all().all()
    assert quarantined.reason.notna().all()
    assert quarantined[["bits_per_dim", "score", "p_value"]].isna().all().all()
    assert set(table[table.outlier].path) == {f"odd_{i:04d}.png" for i in range(4)}
    assert (summary["files"], summary["scored"], summary["quarantined"], summary["outliers"]) == (46, 44, 2, 4)
    assert json.loads((out / "summary.json").read_text())["outliers"] == 4
    assert {path.name for path in out.iterdir()} == {
        "scores.parquet", "summary.json", "report.html", "gallery.parquet", "run.json"
    }  # fmt: skip


def test_the_flags_are_those_of_benjamini_hochberg_over_the_whole_batch(
    params: Params, source: Path, tmp_path: Path
) -> None:
    for rate in (0.02, 0.3):
        summary = score_source(
            str(source), params, tmp_path, tmp_path / "out", Brightness(), ScoreOptions(false_discovery_rate=rate)
        )
        table = pd.read_parquet(tmp_path / "out" / "scores.parquet").query("status == 'scored'")
        assert (table.outlier == conformal.benjamini_hochberg(table.p_value, rate)).all()
        assert summary["false_discovery_rate"] == rate
        assert f"at most {100 * rate:.3g} in 100 of a batch's flagged images are false alarms" in summary["promise"]


def test_strict_flags_no_more_and_promises_for_the_calibration_set_at_hand(
    params: Params, source: Path, tmp_path: Path
) -> None:
    kwargs: dict[str, Any] = {"false_discovery_rate": 0.3}
    plain = score_source(str(source), params, tmp_path, tmp_path / "plain", Brightness(), ScoreOptions(**kwargs))
    strict = score_source(
        str(source), params, tmp_path, tmp_path / "strict", Brightness(), ScoreOptions(strict=True, **kwargs)
    )
    tables = [pd.read_parquet(tmp_path / name / "scores.parquet") for name in ("plain", "strict")]
    assert (tables[0].p_value.dropna() == tables[1].p_value.dropna()).all(), "the column keeps the plain p-values"
    p = conformal.conditional_p_values(tables[1].p_value.dropna(), len(Brightness().calibration))
    assert tables[1].outlier.sum() == conformal.benjamini_hochberg(p, 0.3).sum() <= plain["outliers"]
    assert strict["fewest_to_flag"] >= plain["fewest_to_flag"]
    assert "90% sure" in strict["promise"]
    assert "sure" not in plain["promise"]


def test_labels_stand_in_the_table_where_the_detector_gives_them(params: Params, source: Path, tmp_path: Path) -> None:
    class Labels(Brightness):
        class_names = ("shirt", "bag")

        def score(self, images: Any) -> Any:
            n = len(images)
            return replace(super().score(images), label=np.ones(n, int), label_probability=np.full(n, 0.75))

    score_source(str(source), params, tmp_path, tmp_path / "out", Labels())
    table = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    assert list(table) == [*COLUMNS, "label", "label_probability", "label_p_value"]
    assert set(table[table.status == "scored"].label) == {"bag"}
    assert table[table.status == "quarantined"].label.isna().all()


def test_a_conditional_density_labels_every_image_beside_the_verdict(
    params: Params, source: Path, tmp_path: Path
) -> None:
    settings = pixelcnn.Settings(channels=4, dilations=(1,), conditional=True)
    model = pixelcnn.PixelCNN(settings, channels=1, size=28, classes=3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    names = ("shirt", "bag", "boot")
    save_model(model, tmp_path / "models" / "labeller", kind="pixelcnn", class_names=names, about={})

    without = score_source(str(source), params, tmp_path, tmp_path / "out", Brightness())
    score_source(
        str(source), params, tmp_path, tmp_path / "out", Brightness(), ScoreOptions(label_model="models/labeller")
    )
    table = pd.read_parquet(tmp_path / "out" / "scores.parquet").query("status == 'scored'")
    images = np.stack(
        [decode_picture((source / path).read_bytes(), size=28, channels=1, resize="crop").pixels for path in table.path]
    )
    with torch.no_grad():
        posterior = model.log_prob_by_label(torch.from_numpy(images)).double().softmax(1)
    given = posterior[range(len(table)), [names.index(name) for name in table.label]]
    assert len(set(table.label)) > 1
    assert np.allclose(given, posterior.amax(1), atol=5e-3), "the likeliest label, or one that ties"
    assert np.allclose(table.label_probability, posterior.amax(1), atol=5e-3)
    assert table.outlier.sum() == without["outliers"]

    settings = settings.model_copy(update={"conditional": False})
    unconditional = pixelcnn.PixelCNN(settings, channels=1, size=28, classes=0)
    save_model(unconditional, tmp_path / "models" / "plain", kind="pixelcnn", class_names=(), about={})
    with pytest.raises(ModelError, match="is no density by label"):
        score_source(
            str(source), params, tmp_path, tmp_path / "out", Brightness(), ScoreOptions(label_model="models/plain")
        )


def test_an_image_of_another_size_or_colour_is_scored_and_its_row_says_what_was_changed(
    params: Params, tmp_path: Path
) -> None:
    folder = tmp_path / "batch"
    folder.mkdir()
    (folder / "a.png").write_bytes(png())
    (folder / "b.png").write_bytes(png(size=(40, 30)))
    (folder / "c.png").write_bytes(png(mode="RGB"))
    summary = score_source(str(folder), params, tmp_path, tmp_path / "out", Brightness())
    a, b, c = pd.read_parquet(tmp_path / "out" / "scores.parquet").reason
    assert a is None or pd.isna(a)
    assert b == "changed to fit: 40 x 30 pixels to 28 x 28 (crop)"
    assert c == "changed to fit: RGB to grey"
    assert summary["changed_to_fit"] == 2


@pytest.mark.parametrize("content", ["nothing", "marker", "broken"])
def test_a_batch_without_a_single_image_has_results_too(params: Params, tmp_path: Path, content: str) -> None:
    folder = tmp_path / "batch"
    folder.mkdir()
    if content == "marker":
        (folder / "_SUCCESS").touch()
    if content == "broken":
        for i in range(11):
            (folder / f"{i}.png").write_bytes(b"")
    summary = score_source(str(folder), params, tmp_path, tmp_path / "out", Brightness())
    count = 11 if content == "broken" else 0
    assert (summary["files"], summary["quarantined"], summary["outliers"]) == (count, count, 0)
    assert list(pd.read_parquet(tmp_path / "out" / "scores.parquet")) == COLUMNS
    assert "report" in (tmp_path / "out" / "report.html").read_text()


def test_a_batch_of_one_is_scored(params: Params, tmp_path: Path) -> None:
    fill(tmp_path / "batch", 0, bright=1)
    summary = score_source("batch/odd_0000.png", params, tmp_path, tmp_path / "out", Brightness())
    assert (summary["files"], summary["outliers"]) == (1, 1)


def test_an_image_without_a_finite_score_is_quarantined(params: Params, source: Path, tmp_path: Path) -> None:
    class Silent(Brightness):
        def score(self, images: Any) -> Any:
            scores = super().score(images)
            scores.score[0] = np.nan
            return scores

    summary = score_source(str(source), params, tmp_path, tmp_path / "out", Silent())
    assert summary["quarantine_reasons"]["the detector gives it no finite score"] == 6
    assert summary["scored"] + summary["quarantined"] == summary["files"] == 46
    again = Silent()
    assert score_source(str(source), params, tmp_path, tmp_path / "out", again)["scored"] == summary["scored"]
    assert again.seen == 0, "what the detector gives no score is not asked for again"


def test_what_could_not_be_read_for_a_passing_reason_is_scored_by_the_next_job(
    params: Params, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (source / "normal_0003.png").read_bytes()

    def died(data: bytes, **options: Any) -> Any:
        if data == whole:
            raise DataError("the reader died")
        return decode_picture(data, **options)

    with monkeypatch.context() as patched:
        patched.setattr(chunks, "decode_picture", died)
        before = score_source(str(source), params, tmp_path, tmp_path / "out", Brightness())
    assert before["quarantine_reasons"]["the reader died"] == 1
    after = score_source(str(source), params, tmp_path, tmp_path / "out", Brightness())
    assert "the reader died" not in after["quarantine_reasons"]
    assert after["scored"] == before["scored"] + 1


def test_the_same_batch_twice_is_scored_once_and_a_changed_one_only_where_it_changed(
    params: Params, source: Path, tmp_path: Path
) -> None:
    out, detector = tmp_path / "out", Brightness()
    first = score_source(str(source), params, tmp_path, out, detector)
    before = results(out)
    detector.seen = 0
    assert score_source(str(source), params, tmp_path, out, detector) == first
    assert detector.seen == 0
    assert results(out) == before
    (source / "zz_late.png").write_bytes(png(230))
    assert score_source(str(source), params, tmp_path, out, detector)["outliers"] == 5
    run = json.loads((out / "run.json").read_text())
    assert (run["files"], run["scored_now"]) == (47, 7)  # the last chunk of eight
    (source / "zz_late.png").unlink()
    assert score_source(str(source), params, tmp_path, out, detector) == first
    assert results(out) == before


def test_another_detector_scores_everything_anew(params: Params, source: Path, tmp_path: Path) -> None:
    detector = Brightness()
    score_source(str(source), params, tmp_path, tmp_path / "out", detector)
    detector.seen, detector.digest = 0, "brightness-2"
    score_source(str(source), params, tmp_path, tmp_path / "out", detector)
    assert detector.seen >= 44


def test_verdicts_stay_with_the_batch_when_it_is_scored_anew(params: Params, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    score_source(str(source), params, tmp_path, out, Brightness())
    table = pd.read_parquet(out / "scores.parquet")
    row = table[table.outlier].iloc[0]
    write_verdicts(out, {(row.path, row.sha256): "fine"})
    score_source(str(source), params, tmp_path, out, Brightness(), ScoreOptions(false_discovery_rate=0.2))
    assert read_verdicts(out) == {(row.path, row.sha256): "fine"}
    assert "0 of 1 reviewed" in (out / "report.html").read_text()


def test_limit_looks_at_the_first_files_only(params: Params, source: Path, tmp_path: Path) -> None:
    summary = score_source(str(source), params, tmp_path, tmp_path / "out", Brightness(), ScoreOptions(limit=10))
    assert summary["files"] == 10
    assert "Only the first 10 files" in (tmp_path / "out" / "report.html").read_text()


def test_fail_on_fails_when_so_many_are_flagged_and_after_the_results_are_written(
    params: Params, source: Path, tmp_path: Path
) -> None:
    score_source(str(source), params, tmp_path, tmp_path / "out", Brightness(), ScoreOptions(fail_on=5))
    with pytest.raises(OutliersFound, match="4 of 44 images are outliers"):
        score_source(str(source), params, tmp_path, tmp_path / "out", Brightness(), ScoreOptions(fail_on=4))
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize(
    "options", [{"false_discovery_rate": 0.0}, {"false_discovery_rate": 1.5}, {"limit": 0}, {"fail_on": 0}]
)
def test_an_impossible_option_is_refused_before_any_work(params: Params, tmp_path: Path, options: Any) -> None:
    with pytest.raises(ParamsError):
        score_source("nowhere", params, tmp_path, tmp_path / "out", Brightness(), ScoreOptions(**options))


def test_a_folder_that_holds_something_else_is_left_alone(params: Params, source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose")
    with pytest.raises(DataError, match="holds no results"):
        score_source(str(source), params, tmp_path, tmp_path / "mine", Brightness())
    with pytest.raises(DataError, match="inside the source"):
        score_source(str(source), params, tmp_path, source / "out", Brightness())
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "do not lose"


def test_a_missing_source_and_a_missing_detector_are_one_sentence(params: Params, source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder or file"):
        score_source("nowhere", params, tmp_path, None, Brightness())
    with pytest.raises(ModelError, match="no outlier detector here"):
        score_source(str(source), params, tmp_path)
    assert not (tmp_path / "data" / "outliers").exists()


def test_two_sources_with_one_name_keep_their_own_results(params: Params, tmp_path: Path) -> None:
    for parent in ("x", "y"):
        fill(tmp_path / parent / "batch", 3, bright=1 if parent == "y" else 0)
        score_source(f"{parent}/batch", params, tmp_path, None, Brightness())
    assert results_folder("x/batch", params, tmp_path).name == "batch"
    assert results_folder("y/batch", params, tmp_path).name.startswith("batch-")
    for parent, count in (("x", 3), ("y", 4)):
        folder = results_folder(f"{parent}/batch", params, tmp_path)
        assert json.loads((folder / "summary.json").read_text())["files"] == count


def test_a_batch_is_compared_with_those_before_it(params: Params, tmp_path: Path) -> None:
    for day in range(3):
        fill(tmp_path / f"day{day}", 60)
        summary = score_source(f"day{day}", params, tmp_path, None, Brightness())
    assert summary["past_batches"] == 2
    assert summary["drift_from_past_p_value"] > 0.99
    fill(tmp_path / "moved", 0, bright=40)
    moved = score_source("moved", params, tmp_path, None, Brightness())
    assert moved["drift_from_past_p_value"] < 1e-6
    assert json.loads((tmp_path / "data/outliers/moved/run.json").read_text())["past_batches"] == 3
    assert (
        score_source("day0", params, tmp_path, tmp_path / "alone/out", Brightness())["drift_from_past_p_value"] is None
    )


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("data/inbox/demo", "demo"),
        ("s3://bucket/2024-05-01/", "2024-05-01"),
        ("a/ship.tar.gz", "ship"),
        ("a/<b>", "_b_"),
        ("a/..", "batch"),
        ("a/.hidden", "hidden"),
        ("a/*.png", "png-"),
    ],
)
def test_a_batch_is_named_after_its_source_in_safe_characters(source: str, name: str) -> None:
    given = batch_name(source)
    assert given.startswith(name.strip("_"))
    assert set(given) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert not given.startswith(".")


def test_memory_holds_a_chunk_and_not_the_batch(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "batch", 200)
    alive = most = 0

    class Counted(chunks.Loaded):
        def __init__(self, *values: Any) -> None:
            nonlocal alive, most
            super().__init__(*values)
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    monkeypatch.setattr(chunks, "Loaded", Counted)
    score_source("batch", params, tmp_path, None, Brightness())
    assert most <= chunks.READ_AHEAD + 2 * params.detector.batch_size + chunks.READERS


def test_a_chunk_of_large_pictures_holds_fewer_so_that_they_fit_into_memory(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "batch", 7)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 3 * 28 * 28)
    seen: list[int] = []

    class Counted(Brightness):
        def score(self, images: Any) -> Any:
            seen.append(len(images))
            return super().score(images)

    summary = score_source("batch", params, tmp_path, None, Counted())
    assert seen[:3] == [3, 3, 1]
    assert (summary["identity"]["chunk"], summary["scored"]) == (3, 7)
    large = Brightness(channels=3)
    large.size = 1024
    monkeypatch.undo()
    assert chunks.files_in_chunk(250, large) == 85
    assert chunks.files_in_chunk(250, Brightness()) == 250


def test_row_groups_hold_many_chunks_and_a_run_goes_on_chunk_by_chunk(
    params: Params, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlier_results, "GROUP", 20)  # two chunks of eight
    out, detector = tmp_path / "out", Brightness()
    score_source(str(source), params, tmp_path, out, detector)
    groups = pq.ParquetFile(out / "scores.parquet")
    assert [groups.metadata.row_group(i).num_rows for i in range(groups.num_row_groups)] == [16, 16, 14]
    (source / "zz_late.png").write_bytes(png(230))
    score_source(str(source), params, tmp_path, out, detector)
    assert json.loads((out / "run.json").read_text())["scored_now"] == 7
