from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from densitywatch.data.validation.validate import validate
from densitywatch.errors import DataError, ValidationFailed
from densitywatch.files import file_digest
from tests.data.conftest import MakeParams

SMALL = {"min_images": 100, "min_label_share": 0.2}


@pytest.fixture
def dataset(tmp_path: Path, prepared: Path) -> Path:
    """A project folder with a prepared dataset of its own, to be damaged."""
    shutil.copytree(prepared / "data/prepared", tmp_path / "data/prepared")
    return tmp_path


def change_manifest(root: Path, change: Callable[[pd.DataFrame], Any]) -> None:
    path = root / "data/prepared/manifest.parquet"
    frame = pd.read_parquet(path)
    changed = change(frame)
    (frame if changed is None else changed).to_parquet(path)


def change_array(root: Path, name: str, change: Callable[[Any], Any]) -> None:
    path = root / "data/prepared" / name
    array = np.load(path)
    change(array)
    np.save(path, array)


def page(root: Path) -> str:
    return (root / "reports/data/index.html").read_text(encoding="utf-8")


def test_real_data_pass_and_leave_pages_and_figures(dataset: Path, make_params: MakeParams) -> None:
    validate(make_params(limit=600, expectations=SMALL), dataset)
    figures = json.loads((dataset / "metrics/data.json").read_text())
    assert all(isinstance(value, int | float) for value in figures.values())
    assert figures["images"] == 1200
    assert figures["train_images"] == 480
    assert figures["gate_images"] == 30
    assert figures["classes"] == 10
    assert figures["duplicates"] == figures["flat_images"] == figures["images_in_two_splits"] == 0
    assert figures["expectations_failed"] == 0
    assert figures["expectations"] >= 18
    assert 60 < figures["mean_intensity"] < 85
    assert "All 21 expectations on fashion_mnist hold" in page(dataset)
    assert "Ankle boot" in page(dataset)
    assert sorted(path.name for path in (dataset / "reports/data").iterdir()) == ["data-docs.html", "index.html"]
    assert sorted(path.name for path in dataset.iterdir()) == ["data", "metrics", "reports"], "no gx folder is left"


def test_great_expectations_says_nothing_of_its_own(
    dataset: Path, make_params: MakeParams, caplog: pytest.LogCaptureFixture
) -> None:
    validate(make_params(limit=600, expectations=SMALL), dataset)
    assert [record.name for record in caplog.records if record.name.startswith("great_expectations")] == []


def test_the_same_data_give_the_same_pages(dataset: Path, make_params: MakeParams) -> None:
    digests = []
    for _ in range(2):
        validate(make_params(limit=600, expectations=SMALL), dataset)
        digests.append([file_digest(path) for path in sorted((dataset / "reports/data").iterdir())])
    assert digests[0] == digests[1]


def test_the_pages_load_nothing_from_elsewhere(dataset: Path, make_params: MakeParams) -> None:
    validate(make_params(limit=600, expectations=SMALL), dataset)
    for path in (dataset / "reports/data").iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", text), path
        assert "url(" not in text
        assert "<script" not in text.lower()
        assert "default-src 'none'" in text


def flat(frame: pd.DataFrame) -> None:
    frame.loc[:4, "std"] = 0.0


def dark(frame: pd.DataFrame) -> None:
    frame["mean"] = 3.0


def leak(frame: pd.DataFrame) -> None:
    frame.loc[frame["split"] == "test", "sha256"] = frame.loc[0, "sha256"]


def wrong_label(frame: pd.DataFrame) -> None:
    frame.loc[7, "label"] = 11


def rare_label(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[(frame["label"] != 3) | (frame.groupby("label").cumcount() < 2)]


def no_label(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["label"] != 3]


def colour(frame: pd.DataFrame) -> None:
    frame.loc[3, "mode"] = "RGB"


def larger(frame: pd.DataFrame) -> None:
    frame.loc[3, "width"] = 32


def other_split(frame: pd.DataFrame) -> None:
    frame.loc[3, "split"] = "holdout"


def nameless(frame: pd.DataFrame) -> None:
    frame.loc[3, "path"] = None


def extra_column(frame: pd.DataFrame) -> None:
    frame["colour"] = 1


def hostile_column(frame: pd.DataFrame) -> None:
    frame['x" --, "\'; %s $y'] = 1


def named_like_ours(frame: pd.DataFrame) -> None:
    frame["first"], frame["splits"] = "a", "b"


def half_a_row(frame: pd.DataFrame) -> None:
    frame["row"] = frame["row"].astype(float)
    frame.loc[3, "row"] = 2.5


def worded(frame: pd.DataFrame) -> None:
    frame["width"] = "wide"


def unknown_means(frame: pd.DataFrame) -> None:
    frame["mean"] = np.nan


def beyond_64_bits(frame: pd.DataFrame) -> None:
    frame["height"] = np.uint64(2**64 - 1)


def out_of_range(frame: pd.DataFrame) -> None:
    frame.loc[3, "max"] = 300


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (flat, "flat_images"),
        (dark, "mean_intensity"),
        (leak, "one_split"),
        (wrong_label, "label_set"),
        (rare_label, "label_balance"),
        (no_label, "labels_filled"),
        (colour, "mode"),
        (larger, "width"),
        (other_split, "split_names"),
        (nameless, "path_given"),
        (extra_column, "schema"),
        (hostile_column, "schema"),
        (named_like_ours, "schema"),
        (half_a_row, "intact"),
        (worded, "width"),
        (beyond_64_bits, "height"),
        (unknown_means, "mean_given"),
        (out_of_range, "intensity_max"),
    ],
)
def test_a_broken_dataset_stops_at_the_expectation_it_breaks(
    dataset: Path, make_params: MakeParams, change: Callable[[pd.DataFrame], Any], name: str
) -> None:
    change_manifest(dataset, change)
    with pytest.raises(ValidationFailed) as error:
        validate(make_params(limit=600, expectations=SMALL), dataset)
    sentence = str(error.value)
    assert "\n" not in sentence
    assert "see reports/data/index.html" in sentence
    assert not (dataset / "metrics/data.json").exists()
    assert "do not hold" in page(dataset)
    assert "Traceback" not in (dataset / "reports/data/data-docs.html").read_text()
    failed = re.findall(r'<b class="fails">(\w+)</b>', page(dataset))
    assert name in failed
    assert sentence.startswith(f"expectation '{failed[0]}' failed: ")


def test_the_sentence_names_the_limit_what_was_found_and_some_rows(dataset: Path, make_params: MakeParams) -> None:
    change_manifest(dataset, flat)
    first = pd.read_parquet(dataset / "data/prepared/manifest.parquet").loc[0]
    with pytest.raises(ValidationFailed) as error:
        validate(make_params(limit=600, expectations=SMALL), dataset)
    assert str(error.value).startswith(
        "expectation 'flat_images' failed: at most 0.10% of the images are of one value only, but 5 of 1,200 images "
        f"(0.417 %) break this, for instance '{first['path']}' (row 0 of train), "
    )
    assert page(dataset).count("data:image/png;base64,") == 10 + 5, "the rows are shown as pictures"


def test_limits_come_from_params(dataset: Path, make_params: MakeParams) -> None:
    with pytest.raises(ValidationFailed, match="'row_count' failed: there are at least 5,000 images, but found 1,200"):
        validate(make_params(limit=600, expectations={**SMALL, "min_images": 5000}), dataset)


def test_repeated_images_within_a_split_count_against_the_duplicates(dataset: Path, make_params: MakeParams) -> None:
    def repeat(frame: pd.DataFrame) -> None:
        frame.loc[1:30, "sha256"] = frame.loc[0, "sha256"]

    change_manifest(dataset, repeat)
    change_array(dataset, "train.npy", lambda images: images.__setitem__(slice(1, 31), images[0]))
    with pytest.raises(ValidationFailed, match=r"'duplicates' failed: .* 30 of 1,200 images \(2.5 %\)"):
        validate(make_params(limit=600, expectations=SMALL), dataset)
    validate(make_params(limit=600, expectations={**SMALL, "max_duplicate_share": 0.03}), dataset)
    figures = json.loads((dataset / "metrics/data.json").read_text())
    assert figures["duplicates"] == 30
    assert figures["duplicates_with_other_labels"] == 1


@pytest.mark.parametrize("file", ["test.npy", "test_labels.npy"])
def test_arrays_that_were_altered_after_preparing_are_noticed(
    dataset: Path, make_params: MakeParams, file: str
) -> None:
    change_array(dataset, file, lambda array: array.__setitem__((5, *[0] * (array.ndim - 1)), 9))
    with pytest.raises(ValidationFailed, match=r"'intact' failed: .* 1 of 1,200 images .*\(row 5 of test\)"):
        validate(make_params(limit=600, expectations=SMALL), dataset)


def test_a_failure_takes_away_the_figures_of_an_earlier_success(dataset: Path, make_params: MakeParams) -> None:
    params = make_params(limit=600, expectations=SMALL)
    validate(params, dataset)
    change_manifest(dataset, flat)
    with pytest.raises(ValidationFailed):
        validate(params, dataset)
    assert not (dataset / "metrics/data.json").exists()


def test_file_names_from_outside_are_text_on_both_pages(dataset: Path, make_params: MakeParams) -> None:
    def hostile(frame: pd.DataFrame) -> None:
        frame.loc[:4, "path"] = "<img src=x onerror=alert(1)>\n'\""
        flat(frame)
        frame.loc[0, "mode"] = "<script>alert(2)</script>"
        frame.loc[1, "mode"] = "<b onclick=alert(3)>"
        frame["<b onclick=alert(4)>"] = 1

    change_manifest(dataset, hostile)
    with pytest.raises(ValidationFailed) as error:
        validate(make_params(limit=600, expectations=SMALL), dataset)
    assert "\n" not in str(error.value)
    for path in (dataset / "reports/data").iterdir():
        text = path.read_text(encoding="utf-8")
        assert "<img src=x" not in text
        assert "<b onclick" not in text
        assert "<script" not in text.lower()
    assert "&lt;img src=x onerror=alert(1)&gt;" in page(dataset)


@pytest.mark.parametrize("name", ["position", "INTACT", "Path", "a\0b", "many", "lists", "a folder"])
def test_a_manifest_that_no_table_can_hold_is_a_sentence(dataset: Path, make_params: MakeParams, name: str) -> None:
    file = dataset / "data/prepared/manifest.parquet"
    if name == "a folder":
        file.unlink()
        file.mkdir()
    elif name == "many":
        more = pd.DataFrame(np.zeros((1200, 2000), np.int8)).rename(columns=str)
        change_manifest(dataset, lambda frame: pd.concat([frame, more], axis=1))
    else:
        change_manifest(dataset, lambda frame: frame.assign(**{name: [[1]] * len(frame) if name == "lists" else 1}))
    with pytest.raises(DataError, match="not a whole Parquet file"):
        validate(make_params(limit=600, expectations=SMALL), dataset)


def test_a_checkout_may_lie_in_a_folder_of_any_name(dataset: Path, make_params: MakeParams) -> None:
    other = dataset.parent / "a b$HOME%d#e?f'g\"ü"
    dataset.rename(other)
    validate(make_params(limit=600, expectations=SMALL), other)
    assert "All 21 expectations" in page(other)


def test_without_labels_nothing_is_expected_of_them(dataset: Path, make_params: MakeParams) -> None:
    change_manifest(dataset, lambda frame: frame.__setitem__("label", -1))
    for name in ("train", "validation", "calibration", "gate", "test"):
        change_array(dataset, f"{name}_labels.npy", lambda labels: labels.fill(-1))
    facts = json.loads((dataset / "data/prepared/dataset.json").read_text())
    (dataset / "data/prepared/dataset.json").write_text(json.dumps({**facts, "class_names": []}))
    validate(make_params(limit=600, expectations=SMALL), dataset)
    assert "no labels" in page(dataset)
    assert "label_set" not in page(dataset)
    assert json.loads((dataset / "metrics/data.json").read_text())["classes"] == 0


def test_what_was_left_out_is_on_the_page(dataset: Path, make_params: MakeParams) -> None:
    facts = json.loads((dataset / "data/prepared/dataset.json").read_text())
    facts["rejected"] = [{"path": f"<b>{number}.png", "reason": "the file is empty"} for number in range(60)]
    (dataset / "data/prepared/dataset.json").write_text(json.dumps(facts))
    validate(make_params(limit=600, expectations=SMALL), dataset)
    assert "60 files that are not usable" in page(dataset)
    assert "&lt;b&gt;0.png" in page(dataset)
    assert "10 more in data/prepared/dataset.json" in page(dataset)


@pytest.mark.parametrize("damage", ["missing", "cut", "column", "empty"])
def test_a_missing_or_damaged_manifest_is_a_sentence(dataset: Path, make_params: MakeParams, damage: str) -> None:
    path = dataset / "data/prepared/manifest.parquet"
    validate(make_params(limit=600, expectations=SMALL), dataset)
    if damage == "column":
        change_manifest(dataset, lambda frame: frame.drop(columns="sha256"))
    elif damage == "empty":
        change_manifest(dataset, lambda frame: frame[:0])
    else:
        data = path.read_bytes()
        path.unlink()
        if damage == "cut":
            path.write_bytes(data[:100])
    with pytest.raises(
        (DataError, ValidationFailed), match=r"no manifest|not a whole Parquet|the column sha256|no images"
    ):
        validate(make_params(limit=600, expectations=SMALL), dataset)


def test_validate_before_prepare_says_what_to_run(tmp_path: Path, make_params: MakeParams) -> None:
    with pytest.raises(DataError, match="no prepared dataset here; run `dvc repro prepare`"):
        validate(make_params(), tmp_path)
