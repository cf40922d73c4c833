"""Which images of drifted batches are accepted into the dataset, by `data.accept` and by what people said of them."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from densitywatch.batches import accepting
from densitywatch.batches.accepting import accept, verdicts_digest
from densitywatch.batches.batch_report import flagged
from densitywatch.batches.review.judging import give_verdicts
from densitywatch.batches.review.random_draw import draw
from densitywatch.batches.score_batch import score_source
from densitywatch.data.accepted import accepted_files, accepted_rows
from densitywatch.data.dataset import DatasetInfo
from densitywatch.data.look import ACCEPTED
from densitywatch.params import Params
from tests.detector.standin import Brightness, fill


def with_accept(params: Params, accept: str) -> Params:
    return params.model_copy(update={"data": params.data.model_copy(update={"accept": accept})})


@pytest.fixture
def folder(params: Params, tmp_path: Path) -> Path:
    """Results of the batch monday: 40 images, 4 of them flagged."""
    fill(tmp_path / "data/inbox/monday", 36, bright=4)
    (tmp_path / "data/inbox/monday/broken.png").write_bytes(b"no image")
    score_source("data/inbox/monday", params, tmp_path, None, Brightness())
    found = tmp_path / "data/outliers/monday"
    assert len(list(flagged(found))) == 4
    return found


def names(root: Path) -> set[str]:
    return {row["path"] for file in accepted_files(root) for row in accepted_rows(file)}


def test_never_accepts_nothing_whatever_a_person_said(params: Params, tmp_path: Path, folder: Path) -> None:
    give_verdicts(folder, dict.fromkeys(flagged(folder), "fine"))
    assert accept(["monday"], with_accept(params, "never"), tmp_path).images == 0
    assert not (tmp_path / ACCEPTED).exists()


def test_reviewed_accepts_what_a_person_called_fine_and_takes_it_back_with_the_verdict(
    params: Params, tmp_path: Path, folder: Path
) -> None:
    keys = list(flagged(folder))
    nothing = accept(["monday"], params, tmp_path)
    assert (nothing.images, nothing.changed, nothing.unjudged) == (0, False, 4)
    give_verdicts(folder, {keys[0]: "fine", keys[1]: "outlier", keys[2]: "fine"})
    first = accept(["monday"], params, tmp_path)
    assert (first.images, first.fair, first.changed, first.unjudged) == (2, 0, True, 1)
    assert names(tmp_path) == {keys[0][0], keys[2][0]}
    (row,) = [
        row for row in pq.read_table(tmp_path / ACCEPTED / "monday.parquet").to_pylist() if row["path"] == keys[0][0]
    ]
    assert row["bytes"] == (tmp_path / "data/inbox/monday" / keys[0][0]).read_bytes()
    assert not accept(["monday"], params, tmp_path).changed
    give_verdicts(folder, {keys[0]: None, keys[2]: "outlier"})
    assert accept(["monday"], params, tmp_path).changed
    assert accepted_files(tmp_path) == []


def test_all_accepts_what_was_not_flagged_as_well_and_no_flagged_image_that_nobody_called_fine(
    params: Params, tmp_path: Path, folder: Path
) -> None:
    keys = list(flagged(folder))
    unflagged = {path.name for path in (tmp_path / "data/inbox/monday").glob("normal_*")}
    everything = with_accept(params, "all")
    assert accept(["monday"], everything, tmp_path).images == 36
    assert names(tmp_path) == unflagged
    scores = pq.read_table(folder / "scores.parquet").to_pylist()
    bad = next((row["path"], row["sha256"]) for row in scores if row["path"] in unflagged)
    give_verdicts(folder, {keys[0]: "fine", keys[1]: "outlier", bad: "outlier"})
    assert accept(["monday"], everything, tmp_path).images == 36
    assert names(tmp_path) == unflagged - {bad[0]} | {keys[0][0]}


@pytest.mark.parametrize("mode", ["reviewed", "all"])
def test_images_count_as_a_fair_draw_only_when_a_person_has_judged_the_whole_draw(
    params: Params, tmp_path: Path, folder: Path, mode: str
) -> None:
    """Without a verdict on every drawn image the sample has lost its strangest ones: p-values would be too small."""
    chosen = draw(folder, 12, tmp_path, seed=1)
    bad = set(flagged(folder))
    of_mode = with_accept(params, mode)
    give_verdicts(folder, {key: "outlier" if key in bad else "fine" for key in chosen[:-1]})
    assert accept(["monday"], of_mode, tmp_path).fair == 0
    give_verdicts(folder, {chosen[-1]: "outlier" if chosen[-1] in bad else "fine"})
    fair = {row["path"] for file in accepted_files(tmp_path) for row in accepted_rows(file) if row["fair"]}
    assert fair == set()
    done = accept(["monday"], of_mode, tmp_path)
    fair = {row["path"] for file in accepted_files(tmp_path) for row in accepted_rows(file) if row["fair"]}
    assert fair == {path for path, digest in chosen if (path, digest) not in bad}
    assert done.fair == len(fair) > 0


def test_an_image_that_came_in_two_batches_is_accepted_once(params: Params, tmp_path: Path, folder: Path) -> None:
    everything = with_accept(params, "all")
    fill(tmp_path / "data/inbox/tuesday", 38)
    score_source("data/inbox/tuesday", params, tmp_path, None, Brightness())
    assert accept(["monday", "tuesday"], everything, tmp_path).images == 38
    assert len(accepted_rows(tmp_path / ACCEPTED / "tuesday.parquet")) == 2
    assert not accept(["monday", "tuesday"], everything, tmp_path).changed


def test_a_verdict_that_is_taken_back_takes_the_image_away_after_the_alarm_and_without_the_original(
    params: Params, tmp_path: Path, folder: Path
) -> None:
    """A later retraining asks for no batch of that alarm any more, and the inbox may have been cleared."""
    keys = list(flagged(folder))
    give_verdicts(folder, dict.fromkeys(keys, "fine"))
    assert accept(["monday"], params, tmp_path, alarm="first").images == 4
    for path in (tmp_path / "data/inbox/monday").iterdir():
        path.unlink()
    assert not accept([], params, tmp_path).changed
    give_verdicts(folder, {keys[0]: "outlier", keys[1]: None})
    later = accept([], params, tmp_path)
    assert (later.changed, later.images, later.problems) == (True, 0, [])
    rows = accepted_rows(tmp_path / ACCEPTED / "monday.parquet", whole=True)
    assert {row["path"] for row in rows} == {keys[2][0], keys[3][0]}
    assert all(hashlib.sha256(row["bytes"]).hexdigest() == row["sha256"] for row in rows)
    shutil.rmtree(folder)
    assert not accept([], params, tmp_path).changed, "nobody says anything of that batch any more"


def test_an_image_that_was_called_an_outlier_in_another_batch_is_not_accepted(
    params: Params, tmp_path: Path, folder: Path
) -> None:
    fill(tmp_path / "data/inbox/tuesday", 0, bright=4)
    score_source("data/inbox/tuesday", params, tmp_path, None, Brightness())
    keys = list(flagged(folder))
    give_verdicts(folder, dict.fromkeys(keys, "fine"))
    assert accept(["monday"], params, tmp_path).images == 4
    give_verdicts(tmp_path / "data/outliers/tuesday", {keys[0]: "outlier"})
    assert accept(["monday"], params, tmp_path).images == 3
    assert keys[0][0] not in names(tmp_path)


def test_each_drift_has_its_number_and_an_image_of_two_belongs_to_the_newer(
    params: Params, tmp_path: Path, folder: Path
) -> None:
    everything = with_accept(params, "all")
    fill(tmp_path / "data/inbox/friday", 38)
    score_source("data/inbox/friday", params, tmp_path, None, Brightness())

    def drifts() -> dict[str, tuple[int, int]]:
        rows = {file.stem: accepted_rows(file) for file in accepted_files(tmp_path)}
        assert all(len({(row["drift"], row["alarm"]) for row in found}) == 1 for found in rows.values())
        return {name: (found[0]["drift"], len(found)) for name, found in rows.items()}

    accept(["monday"], everything, tmp_path, alarm="first")
    assert drifts() == {"monday": (1, 36)}
    accept(["monday"], everything, tmp_path, alarm="first")
    assert drifts() == {"monday": (1, 36)}
    assert accept(["friday"], everything, tmp_path, alarm="second").images == 38
    assert drifts() == {"friday": (2, 38)}, "the images of monday came again on friday"
    give_verdicts(folder, {key: "fine" for key in flagged(folder)})
    accept(["monday", "friday"], everything, tmp_path, alarm="third")
    assert drifts() == {"friday": (3, 38), "monday": (3, 4)}
    assert not accept([], everything, tmp_path).changed


def test_where_new_originals_are_gone_what_was_accepted_stays_and_a_part_of_a_draw_is_no_fair_one(
    params: Params, tmp_path: Path, folder: Path
) -> None:
    bad = set(flagged(folder))
    chosen = draw(folder, 40, tmp_path, seed=1)
    give_verdicts(folder, dict.fromkeys(list(bad)[:2], "fine"))
    assert accept(["monday"], params, tmp_path).images == 2
    (tmp_path / "data/inbox/monday/normal_0000.png").unlink()
    give_verdicts(folder, dict.fromkeys(chosen, "fine"))
    done = accept(["monday"], params, tmp_path)
    assert (done.images, done.fair) == (2, 0)
    assert "1 of 38 images are not in data/inbox/monday any more" in done.problems[0]


def test_a_batch_whose_source_is_gone_is_named_and_the_others_are_accepted(
    params: Params, tmp_path: Path, folder: Path
) -> None:
    everything = with_accept(params, "all")
    fill(tmp_path / "data/inbox/tuesday", 38)
    score_source("data/inbox/tuesday", params, tmp_path, None, Brightness())
    for path in (tmp_path / "data/inbox/monday").glob("normal_000*"):
        path.unlink()
    done = accept(["monday", "tuesday", "wednesday"], everything, tmp_path)
    assert [problem.partition(":")[0] for problem in done.problems] == ["monday", "wednesday"]
    assert "10 of 36 images are not in data/inbox/monday any more" in done.problems[0]
    assert done.images == 38


@pytest.mark.parametrize("name", ["../prepared/manifest", "/etc/passwd", "..", ".", "", "monday\n", ".monday"])
def test_a_name_that_leads_out_of_the_folder_is_refused_and_the_others_are_accepted(
    params: Params, tmp_path: Path, folder: Path, name: str
) -> None:
    manifest = tmp_path / "data/prepared/manifest.parquet"
    manifest.parent.mkdir(parents=True)
    shutil.copy(folder / "scores.parquet", manifest)
    give_verdicts(folder, dict.fromkeys(flagged(folder), "fine"))
    done = accept([name, "monday"], with_accept(params, "reviewed"), tmp_path)
    assert done.problems == [f"{name}: is not the name of a batch"]
    assert done.images == 4
    assert manifest.is_file()
    assert [file.name for file in accepted_files(tmp_path)] == ["monday.parquet"]


def test_in_a_dataset_with_classes_an_image_gets_that_of_its_folder_or_what_the_feature_network_says(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "data/inbox/monday/bag", 3)
    fill(tmp_path / "data/inbox/monday/elsewhere", 5)
    score_source("data/inbox/monday", params, tmp_path, None, Brightness())
    everything = with_accept(params, "all")
    info = DatasetInfo("x", 28, 1, ("boot", "bag"), "0", dict.fromkeys(("train",), 1), {})
    monkeypatch.setattr(accepting, "read_info", lambda folder: info)
    without = accept(["monday"], everything, tmp_path)
    assert without.images == 0
    assert "models/classifier" in without.problems[0]

    def by_brightness(network: object, images: np.ndarray) -> np.ndarray:
        return (images.mean((1, 2, 3)) > 12).astype(np.int64)

    monkeypatch.setattr(accepting, "load_classifier", lambda folder: torch.nn.Identity())
    monkeypatch.setattr(accepting, "classes_of", by_brightness)
    # of equal files in two folders one is taken, under its first name
    assert accept(["monday"], everything, tmp_path).images == 5
    labels = {row["path"]: row["label"] for row in accepted_rows(tmp_path / ACCEPTED / "monday.parquet")}
    assert {labels[f"bag/normal_000{i}.png"] for i in range(3)} == {"bag"}
    assert {labels[f"elsewhere/normal_000{i}.png"] for i in (3, 4)} == {"bag"}


def test_what_would_be_learnt_changes_with_the_fine_verdicts_alone(
    params: Params, tmp_path: Path, folder: Path
) -> None:
    keys = list(flagged(folder))
    empty = verdicts_digest(["monday", "gone"], params, tmp_path)
    assert empty[1] == 0
    give_verdicts(folder, {keys[0]: "outlier"})
    assert verdicts_digest(["monday"], params, tmp_path) == empty
    give_verdicts(folder, {keys[1]: "fine"})
    after = verdicts_digest(["monday"], params, tmp_path)
    assert after[1] == 1
    assert after[0] != empty[0]
