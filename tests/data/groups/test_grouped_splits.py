"""Groups in the prepared dataset: they are never cut, each split's are a fair choice, and later ones come last."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from PIL import Image

from densitywatch.data.dataset import SPLITS, open_split, read_info
from densitywatch.data.fetch import fetch
from densitywatch.data.groups.draw import one_of_each_group
from densitywatch.data.image_table import Image as Row
from densitywatch.data.prepare import prepare
from densitywatch.data.validation.validate import validate
from densitywatch.errors import DataError
from densitywatch.params import DataParams
from tests.data.conftest import MakeParams
from tests.data.groups.scenes import scenes
from tests.data.image_rows import assigned

SCENES, FRAMES = 60, 5
DATA = DataParams(
    source="folder", address="x", size=16, channels=1, validation=0.1, calibration=0.3, gate=0.1, test=0.2
)


def rows_of(places: list[tuple[int, int, str, int]]) -> list[Row]:
    """Rows of (group, pixels, part, label)."""
    return [
        Row(n, f"{n:03d}", part, label, f"group {group}", sha256=f"{pixels:04d}")
        for n, (group, pixels, part, label) in enumerate(places)
    ]


@settings(max_examples=200, deadline=None)
@given(
    places=st.lists(
        st.tuples(
            st.integers(0, 80), st.one_of(st.integers(0, 20), st.integers(100, 5000)),
            st.sampled_from(["", "", "", "test", "validation"]), st.integers(0, 2),
        ),
        min_size=8,
        max_size=120,
    ),
    seed=st.integers(0, 5),
    later=st.booleans(),
)  # fmt: skip
def test_no_group_and_no_image_is_in_two_splits(
    places: list[tuple[int, int, str, int]], seed: int, later: bool
) -> None:
    data = DATA.model_copy(update={"calibration_time": "later" if later else "random"})
    rows = rows_of(places)
    before = {row.path: row.group_name for row in rows}
    try:
        splits, dropped = assigned(rows, data, seed, by_groups=True)
    except DataError as error:
        if "too few" not in str(error):
            raise
        reject()  # Hypothesis complains where nearly all are
    where: dict[str, set[str]] = defaultdict(set)
    for name, members in splits.items():
        for row in members:
            for key in (row.sha256, before[row.path], row.group):
                where[key].add(name)
    assert {len(names) for names in where.values()} == {1}
    assert len(dropped) + sum(map(len, splits.values())) == len(rows)
    for item in dropped:
        assert item["reason"].endswith(("of the test part", "of the validation part"))


def test_a_large_group_is_as_likely_to_calibrate_as_a_small_one() -> None:
    sizes = [1] * 30 + [9] * 30
    places = [(group, 100 * group + n, "", -1) for group, size in enumerate(sizes) for n in range(size)]
    chosen: Counter[bool] = Counter()
    for seed in range(200):
        splits, _ = assigned(rows_of(places), DATA, seed, by_groups=True)
        groups = {row.group for row in splits["calibration"]}
        assert len(groups) == 18
        chosen.update(int(group.removeprefix("group ")) >= 30 for group in groups)
    # 3,600 draws without preference: a standard deviation is below 30
    assert abs(chosen[True] - chosen[False]) < 4 * 2 * 30


def test_later_calibration_takes_the_last_groups_for_test_and_those_before_for_calibration() -> None:
    places = [(group, 100 * group + n, "", -1) for group in range(50) for n in range(3)]
    later = DATA.model_copy(update={"calibration_time": "later"})
    splits, _ = assigned(rows_of(places), later, seed=1, by_groups=True)
    groups = {name: sorted({int(row.group.split()[1]) for row in rows}) for name, rows in splits.items()}
    assert groups["test"] == list(range(40, 50))
    assert groups["calibration"] == list(range(25, 40))
    assert max(groups["train"] + groups["validation"] + groups["gate"]) == 24
    plain, _ = assigned(rows_of(places), DATA, seed=1, by_groups=True)
    assert {row.group for row in plain["test"]} != {row.group for row in splits["test"]}


def write_scenes(folder: Path, name: str) -> None:
    images = scenes(SCENES, FRAMES)
    for n, image in enumerate(images):
        path = folder / name.format(scene=n // FRAMES, frame=n % FRAMES, n=n)
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0132] = f"2026:03:{1 + n // FRAMES // 24:02d} {n // FRAMES % 24:02d}:00:{n % FRAMES:02d}"
        Image.fromarray(image[0]).save(path, exif=exif, quality=95)


def prepared(root: Path, make_params: MakeParams, **data: Any) -> list[dict[str, Any]]:
    params = make_params(**{"source": "folder", "address": "frames", "size": 16, **data})
    fetch(params, root)
    prepare(params, root)
    rows: list[dict[str, Any]] = pq.read_table(root / "data/prepared/manifest.parquet").to_pylist()
    return rows


@pytest.mark.parametrize(
    ("name", "setting", "rule"),
    [
        ("scene_{scene:03d}_{frame}.jpg", "auto", r"^(.*\d\D+)\d+\D*$"),
        ("{scene:03d}/{frame}.jpg", "folder", "folder"),
        ("{n:04d}.jpg", "exif:10", "exif:10"),
    ],
)
def test_groups_of_a_folder_are_in_the_manifest_the_arrays_and_the_page(
    tmp_path: Path, make_params: MakeParams, capsys: pytest.CaptureFixture[str], name: str, setting: str, rule: str
) -> None:
    write_scenes(tmp_path / "frames", name)
    rows = prepared(tmp_path, make_params, group=setting)
    said = capsys.readouterr().err
    folder = tmp_path / "data/prepared"
    splits_of: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        splits_of[row["group"]].add(row["split"])
    assert len(splits_of) == SCENES
    assert {len(names) for names in splits_of.values()} == {1}
    numbers: set[int] = set()
    for split in SPLITS:
        opened = open_split(folder, split)
        assert opened.groups is not None
        names = [row["group"] for row in rows if row["split"] == split]
        assert len(set(zip(names, opened.groups.tolist(), strict=True))) == len(set(names))
        assert not numbers & set(opened.groups.tolist())
        numbers |= set(opened.groups.tolist())
        assert read_info(folder).groups[split] == len(set(names))
        assert len(open_split(folder, split).one_of_each_group(3)) == len(set(names))
    assert read_info(folder).class_names == ()
    facts = json.loads((folder / "dataset.json").read_text())["groups"]
    assert (facts["setting"], facts["rule"], facts["largest"]) == (setting, rule, FRAMES)
    assert facts["found"] in said
    assert "calibration counts 6 groups, lone images included: no p-value is below 1 / 7" in said
    params = make_params(source="folder", address="frames", size=16, group=setting, expectations={"min_images": 10})
    validate(params, tmp_path)
    page = (tmp_path / "reports/data/index.html").read_text()
    assert "No group is in two splits" in page
    assert "60 groups, 5 images in the middle one" in page
    assert json.loads((tmp_path / "metrics/data.json").read_text())["calibration_groups"] == 6


def test_prepare_warns_in_one_line_when_frames_of_scenes_are_not_grouped(
    tmp_path: Path, make_params: MakeParams, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenes(tmp_path / "frames", "{n:04d}.jpg")
    rows = prepared(tmp_path, make_params)
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "try data.group: auto" in warnings[0]
    assert {row["group"] for row in rows} == {""}
    assert open_split(tmp_path / "data/prepared", "train").groups is None


def test_one_image_of_each_group_is_drawn_evenly() -> None:
    groups = np.array([3, 1, 3, 1, 1, 7])
    drawn = [one_of_each_group(groups, seed) for seed in range(3000)]
    assert {tuple(groups[rows].tolist()) for rows in drawn} <= {(3, 1, 7), (1, 3, 7)}
    counts = np.bincount(np.concatenate(drawn), minlength=6) / 3000
    # standard deviation below 0.0092
    assert np.allclose(counts, [1 / 2, 1 / 3, 1 / 2, 1 / 3, 1 / 3, 1], atol=0.037)
