"""Accepted images of drifted batches join the dataset: most to train on alone, a judged draw to calibrate on."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy import stats

from densitywatch.data.accepted import SOURCE, accepted_rows, schema
from densitywatch.data.dataset import open_split, read_facts
from densitywatch.data.fetch import fetch
from densitywatch.data.judged_draw import FEWEST, FOR_GATE
from densitywatch.data.look import ACCEPTED, ACCEPTED_NOTE, is_changed, look
from densitywatch.data.prepare import prepare
from densitywatch.errors import DataError
from densitywatch.params import Params
from tests.data.conftest import MakeParams
from tests.data.test_prepare import manifest_of
from tests.detector.standin import png


def write_accepted(root: Path, batch: str, count: int, *, fair: int = 0, start: int = 0, **columns: Any) -> None:
    """`count` different images of a batch, the first `fair` of them of a judged random draw."""
    rows = [
        {
            "path": f"cam/{start + i}.png",
            "sha256": f"{start + i:064x}",
            "label": None,
            "fair": i < fair,
            "drift": 1,
            "alarm": "monday",
            "bytes": png(40 + i % 100, seed=90_000 + start + i),
            **columns,
        }
        for i in range(count)
    ]
    target = root / ACCEPTED / f"{batch}.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema()), target, row_group_size=64)


@pytest.fixture
def project(tmp_path: Path, make_params: MakeParams) -> Params:
    """A folder of 80 images without labels, fetched and prepared."""
    random, folder = np.random.default_rng(0), tmp_path / "mine"
    folder.mkdir()
    for number, pixels in enumerate(random.integers(0, 256, (80, 28, 28), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    params = make_params(source="folder", address="mine")
    fetch(params, tmp_path)
    prepare(params, tmp_path)
    return params


def splits_of(root: Path) -> dict[str, str]:
    return {str(row["path"]): str(row["split"]) for row in manifest_of(root)}


def test_accepted_images_are_trained_on_alone_and_move_no_other_image(project: Params, tmp_path: Path) -> None:
    before = splits_of(tmp_path)
    write_accepted(tmp_path, "monday", 30, fair=10)
    prepare(project, tmp_path)
    after = splits_of(tmp_path)
    new = {path: split for path, split in after.items() if path.startswith(f"{SOURCE}/")}
    assert len(new) == 30
    assert set(new.values()) == {"train"}, "ten judged images are too few to calibrate on"
    assert {path: split for path, split in after.items() if path not in new} == before


def test_a_judged_draw_takes_the_place_of_the_calibration_images_and_no_other_split_changes(
    project: Params, tmp_path: Path
) -> None:
    before = splits_of(tmp_path)
    write_accepted(tmp_path, "monday", FEWEST, fair=FEWEST - 50)
    write_accepted(tmp_path, "tuesday", 80, fair=50, start=FEWEST)
    prepare(project, tmp_path)
    after = splits_of(tmp_path)
    calibration = {path for path, split in after.items() if split == "calibration"}
    assert all(path.startswith(f"{SOURCE}/") for path in calibration), "yesterday's images do not calibrate"
    for_gate = {path for path, split in after.items() if split == "gate" and path.startswith(f"{SOURCE}/")}
    assert len(calibration | for_gate) == FEWEST
    assert stats.binomtest(len(for_gate), FEWEST, FOR_GATE).pvalue > 0.01
    said = read_facts(tmp_path / "data/prepared").judged
    assert said == {"calibration": len(calibration), "gate": len(for_gate)}
    rest = {path: split for path, split in after.items() if not path.startswith(f"{SOURCE}/")}
    assert rest == {path: "train" if split == "calibration" else split for path, split in before.items()}
    assert sum(split == "train" for path, split in after.items() if path.startswith(f"{SOURCE}/")) == 80
    split = open_split(tmp_path / "data/prepared", "calibration")
    assert len(split) == len(calibration)
    rows = sorted(
        (row for row in manifest_of(tmp_path) if row["split"] == "calibration"), key=lambda row: int(str(row["row"]))
    )
    number = int(str(rows[0]["path"]).rpartition("/")[2].removesuffix(".png"))
    start = 0 if number < FEWEST else FEWEST
    level, seed = 40 + (number - start) % 100, 90_000 + number
    assert np.array_equal(split.images[0, 0], np.asarray(Image.open(io.BytesIO(png(level, seed=seed)))))


def test_one_image_too_few_leaves_the_old_calibration_images(project: Params, tmp_path: Path) -> None:
    before = splits_of(tmp_path)
    write_accepted(tmp_path, "monday", FEWEST, fair=FEWEST - 1)
    prepare(project, tmp_path)
    after = splits_of(tmp_path)
    assert {path: split for path, split in after.items() if not path.startswith(SOURCE)} == before
    assert "judged" not in json.loads((tmp_path / "data/prepared/dataset.json").read_text())


def test_the_gate_keeps_its_images_in_their_order_and_an_image_of_the_draw_keeps_its_place_when_more_are_judged(
    project: Params, tmp_path: Path
) -> None:
    before = np.array(open_split(tmp_path / "data/prepared", "gate").images)
    write_accepted(tmp_path, "monday", FEWEST, fair=FEWEST)
    prepare(project, tmp_path)
    first = splits_of(tmp_path)
    assert np.array_equal(open_split(tmp_path / "data/prepared", "gate").images[: len(before)], before)
    write_accepted(tmp_path, "tuesday", 100, fair=100, start=FEWEST)
    prepare(project, tmp_path)
    assert np.array_equal(open_split(tmp_path / "data/prepared", "gate").images[: len(before)], before)
    after = splits_of(tmp_path)
    assert {path: after[path] for path in first} == first


def test_draws_of_two_drifts_are_never_put_together(
    project: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """300 of the first drift and 5 of the second are no draw of 305; the newest with enough of them calibrates."""

    def sources() -> tuple[dict[str, set[str]], str]:
        prepare(project, tmp_path)
        found: dict[str, set[str]] = {}
        for path, split in splits_of(tmp_path).items():
            if path.startswith(f"{SOURCE}/"):
                found.setdefault(split, set()).add(path.split("/")[1])
        return found, capsys.readouterr().err

    write_accepted(tmp_path, "monday", 300, fair=300)
    write_accepted(tmp_path, "friday", 5, fair=5, start=300, drift=2, alarm="friday")
    found, said = sources()
    assert found == {"calibration": {"monday"}, "gate": {"monday"}, "train": {"friday"}}
    assert f"judged images of another drift are trained on, 5 of {FEWEST} that it takes" in said
    write_accepted(tmp_path, "friday", FEWEST, fair=FEWEST, start=300, drift=2, alarm="friday")
    found, said = sources()
    assert found == {"calibration": {"friday"}, "gate": {"friday"}, "train": {"monday"}}
    write_accepted(tmp_path, "monday", 150, fair=150)
    write_accepted(tmp_path, "friday", 150, fair=150, start=300, drift=2, alarm="friday")
    found, said = sources()
    assert found == {"train": {"monday", "friday"}}, "300 of two streams are no draw of one"
    assert "(150 so far)" in said


def test_a_file_of_an_earlier_version_is_read_as_of_a_drift_before_all_others(project: Params, tmp_path: Path) -> None:
    write_accepted(tmp_path, "monday", FEWEST, fair=FEWEST)
    file = tmp_path / ACCEPTED / "monday.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["drift", "alarm"]), file)
    assert {(row["drift"], row["alarm"]) for row in accepted_rows(file)} == {(0, "")}
    prepare(project, tmp_path)
    assert sum(read_facts(tmp_path / "data/prepared").judged.values()) == FEWEST
    write_accepted(tmp_path, "friday", FEWEST, fair=FEWEST, start=FEWEST)
    prepare(project, tmp_path)
    calibrating = {path for path, split in splits_of(tmp_path).items() if split == "calibration"}
    assert all(path.startswith(f"{SOURCE}/friday/") for path in calibrating)


def test_only_images_that_can_be_used_count_towards_a_draw(
    project: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """200 rows of which 190 are no images, or all are one image, do not replace the calibration images."""
    before = splits_of(tmp_path)
    write_accepted(tmp_path, "monday", 190, fair=190, bytes=b"no image")
    write_accepted(tmp_path, "tuesday", 10, fair=10, start=190)
    write_accepted(tmp_path, "wednesday", 50, fair=50, start=200, bytes=png(60, seed=7))
    prepare(project, tmp_path)
    after = splits_of(tmp_path)
    assert {path: split for path, split in after.items() if not path.startswith(SOURCE)} == before
    assert {split for path, split in after.items() if path.startswith(SOURCE)} == {"train"}
    assert "(11 so far)" in capsys.readouterr().err


def test_a_draw_counts_its_groups_and_not_its_images(
    tmp_path: Path, make_params: MakeParams, capsys: pytest.CaptureFixture[str]
) -> None:
    """With data.group: folder three batches are three groups, and of three no p-value is below 1/4."""
    random = np.random.default_rng(0)
    for number, pixels in enumerate(random.integers(0, 256, (80, 28, 28), dtype=np.uint8)):
        (tmp_path / "mine" / f"{number // 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "mine" / f"{number // 2}" / f"{number}.png")
    params = make_params(source="folder", address="mine", group="folder")
    fetch(params, tmp_path)
    for number, batch in enumerate(("monday", "tuesday", "wednesday")):
        write_accepted(tmp_path, batch, 100, fair=100, start=100 * number)
    prepare(params, tmp_path)
    assert read_facts(tmp_path / "data/prepared").judged == {}
    assert "each group counted once (3 so far)" in capsys.readouterr().err


@pytest.mark.parametrize("group", [r"(?:^|/)(cam\d+)_", r"^(.*\d\D+)\d+\D*$"])
def test_a_scene_whose_frames_are_partly_of_the_draw_is_in_one_split(
    tmp_path: Path, make_params: MakeParams, group: str
) -> None:
    """Frames that were flagged and called fine stay with their scene: it is not trained on and calibrated on."""
    random, folder = np.random.default_rng(0), tmp_path / "mine"
    folder.mkdir()
    for number, pixels in enumerate(random.integers(0, 256, (80, 28, 28), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"old{number // 2}_{number}.png")
    params = make_params(source="folder", address="mine", group=group)
    fetch(params, tmp_path)
    rows = [
        _row(f"cam{scene}_{frame}.png", png(60, seed=3 * scene + frame), fair=frame > 0)
        for scene in range(FEWEST + 20)
        for frame in range(3)
    ]
    (tmp_path / ACCEPTED).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema()), tmp_path / ACCEPTED / "monday.parquet")
    prepare(params, tmp_path)
    splits: dict[str, set[str]] = {}
    for row in manifest_of(tmp_path):
        if "cam" in str(row["path"]):
            scene = str(row["path"]).partition("cam")[2].partition("_")[0]
            splits.setdefault(scene, set()).add(str(row["split"]))
    assert set.union(*splits.values()) == {"calibration", "gate"}
    assert all(len(of_scene) == 1 for of_scene in splits.values())
    assert len(splits) == FEWEST + 20
    assert len(read_facts(tmp_path / "data/prepared").dropped) == FEWEST + 20, "the flagged frame of each scene"


def test_p_values_of_a_moved_stream_hold_after_a_judged_draw_and_not_before(project: Params, tmp_path: Path) -> None:
    """The promise as a promise: new images of the moved stream, ranked among the calibration images by brightness."""
    rng = np.random.default_rng(5)

    def share_small() -> float:
        calibration = np.sort(np.asarray(open_split(tmp_path / "data/prepared", "calibration").images).mean((1, 2, 3)))
        new = np.array([np.asarray(_moved(rng)).mean() for _ in range(2000)])
        p = (1 + len(calibration) - np.searchsorted(calibration, new)) / (len(calibration) + 1)
        return float((p <= 0.2).mean())

    assert share_small() > 0.9, "yesterday's calibration images call almost every new image unusual"
    rows = [_row(f"{i}.png", _png(_moved(rng)), fair=True) for i in range(400)]
    (tmp_path / ACCEPTED).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema()), tmp_path / ACCEPTED / "moved.parquet")
    prepare(project, tmp_path)
    # of about 300 calibration images the share is Beta(60, 241) for a given set: 0.2 with a deviation of 0.023
    assert abs(share_small() - 0.2) < 0.07


def _moved(rng: np.random.Generator) -> Image.Image:
    """An image of the moved stream: brighter than the folder's, each with a level of its own."""
    return Image.fromarray(rng.integers(90, 256, (28, 28), dtype=np.uint8) // 2 + int(rng.integers(100, 120)))


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.convert("L").save(file, "PNG")
    return file.getvalue()


def _row(path: str, data: bytes, *, fair: bool) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    return {"path": path, "sha256": digest, "label": None, "fair": fair, "drift": 1, "alarm": "monday", "bytes": data}


def test_look_sees_accepted_images_and_names_those_that_dvc_knows_of_and_are_gone(
    project: Params, tmp_path: Path
) -> None:
    look(project, tmp_path)
    nothing = (tmp_path / ACCEPTED_NOTE).read_bytes()
    assert not is_changed(project, tmp_path)
    write_accepted(tmp_path, "monday", 3)
    assert is_changed(project, tmp_path)
    look(project, tmp_path)
    assert (tmp_path / ACCEPTED_NOTE).read_bytes() != nothing
    assert not is_changed(project, tmp_path)
    (tmp_path / ACCEPTED / "monday.parquet").unlink()
    (tmp_path / ACCEPTED).rmdir()
    (tmp_path / "data" / "accepted.dvc").write_text("outs: []\n")
    with pytest.raises(DataError, match=r"data/accepted: not there, and data/accepted.dvc names it; run `dvc pull"):
        look(project, tmp_path)


def test_the_built_in_garments_take_accepted_images_of_their_size_with_a_class_and_name_the_others(
    tmp_path: Path, make_params: MakeParams, fashion_mnist: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "raw").symlink_to(fashion_mnist)
    params = make_params(source="fashion_mnist", limit=300)
    write_accepted(tmp_path, "monday", 5, label="Bag")
    write_accepted(tmp_path, "large", 2, start=10, label="Bag", bytes=png(60, size=(32, 32)))
    write_accepted(tmp_path, "nameless", 1, start=20)
    write_accepted(tmp_path, "other", 1, start=30, label="Hat")
    prepare(params, tmp_path)
    new = [row for row in manifest_of(tmp_path) if str(row["path"]).startswith(f"{SOURCE}/")]
    assert [(row["split"], row["label"]) for row in new] == [("train", 8)] * 5
    rejected = {item.path: item.reason for item in read_facts(tmp_path / "data/prepared").rejected}
    assert [reason for path, reason in rejected.items() if "/large/" in path] == [
        "32 x 32 pixels in format L; images of fashion_mnist have 28 x 28 in format L"
    ] * 2
    assert "no label" in next(reason for path, reason in rejected.items() if "/nameless/" in path)
    assert "its label 'Hat' is no class" in next(reason for path, reason in rejected.items() if "/other/" in path)


def test_a_damaged_file_of_accepted_images_is_named_with_what_to_do(project: Params, tmp_path: Path) -> None:
    (tmp_path / ACCEPTED).mkdir(parents=True)
    (tmp_path / ACCEPTED / "monday.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match=r"monday.parquet: damaged; run `dvc checkout data/accepted.dvc`"):
        prepare(project, tmp_path)
