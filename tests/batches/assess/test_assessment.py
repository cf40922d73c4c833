"""The verb on a detector that costs nothing: figures, bad inputs, files; and on a real one with a map."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from playwright.sync_api import Browser

from densitywatch import cli
from densitywatch.batches.assess.assessment import assess, in_lines
from densitywatch.errors import DataError
from densitywatch.params import Params
from docs.scripts import files_page
from tests.detector.local.test_members import fitting_data, made, plates, scratched
from tests.detector.standin import Brightness, png
from tests.detector.standin import fill as fill_one

EVIL = "<img src=x onerror=document.title='owned'>\u202e{{ 7*7 }}.png"


def fill(folder: Path, count: int, level: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i:03d}.png").write_bytes(png(level + i % 10, seed=i))
    return folder


def mask(path: Path, size: tuple[int, int] = (28, 28), *, top: int = 255, empty: bool = False) -> None:
    """A mask whose upper left quarter is marked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0]), np.uint8)
    if not empty:
        pixels[: size[1] // 2, : size[0] // 2] = top
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """25 good images, 20 that are brighter than all, 20 that are darker."""
    top = tmp_path / "set"
    fill_one(top / "good", 25)
    fill(top / "bright", 20, 200)
    fill(top / "dark", 20, 0)
    return top


def measure(folder: Path, params: Params, tmp_path: Path, **more: Any) -> dict[str, Any]:
    return assess(
        str(folder), params, tmp_path, more.pop("out", tmp_path / "out"), more.pop("detector", Brightness()), **more
    )


def test_kinds_come_worst_first_with_figures_and_floors(folder: Path, params: Params, tmp_path: Path) -> None:
    found = measure(folder, params, tmp_path)
    assert [row["kind"] for row in found["kinds"]] == ["dark", "bright"]
    dark, bright = found["kinds"]
    assert bright["auroc"] == [1.0, 1.0, 1.0]
    assert [at["share"] for at in bright["found"]] == [1.0, 1.0]
    assert dark["auroc"][0] < 0.2
    assert dark["below_floor"] == ["mean intensity (darker)", *dark["below_floor"][1:]]
    assert [at["share"] for at in dark["found"]] == [0.0, 0.0]
    assert [alarms["count"] for alarms in found["good"]["false_alarms"]] == [0, 0]
    assert found["all"]["images"] == 40
    assert "pro" not in bright
    assert set(found) == {*files_page.ASSESSMENT, "out"}
    assert set(bright) | {"pixel_auroc", "pro", "regions"} == set(files_page.ASSESSED_KIND)
    written = json.loads((tmp_path / "out" / "assessment.json").read_text())
    assert written == {key: value for key, value in found.items() if key != "out"}
    assert [row["score"] for row in dark["scores"]] == sorted(row["score"] for row in dark["scores"])
    assert any(line.startswith("dark (20): AUROC 0.") for line in in_lines(found))


def test_the_default_folder_has_the_name_of_the_set_and_two_sets_of_one_name_keep_their_own(
    folder: Path, params: Params, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "one/bottle/test")
    shutil.copytree(folder, tmp_path / "two/bottle/test")
    first = measure(tmp_path / "one/bottle/test", params, tmp_path, out=None)
    second = measure(tmp_path / "two/bottle/test", params, tmp_path, out=None)
    assert measure(tmp_path / "one/bottle/test", params, tmp_path, out=None) == first
    assert Path(first["out"]) == tmp_path / "data/assessments/bottle"
    assert re.fullmatch(r"bottle-[0-9a-f]{8}", Path(second["out"]).name)


def test_a_set_whose_name_is_no_utf_8_has_results_too(folder: Path, params: Params, tmp_path: Path) -> None:
    named = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.rename(named)
    found = measure(named, params, tmp_path, out=None)
    assert re.fullmatch(r"caf-[0-9a-f]{8}", Path(found["out"]).name)


def test_masks_give_figures_of_pixels_and_those_that_cannot_be_used_are_named(
    folder: Path, params: Params, tmp_path: Path
) -> None:
    for i in range(4):  # the defect is the bright quarter of an image that is dark otherwise
        pixels = np.zeros((56, 56), np.uint8)
        pixels[:28, :28] = 250
        (folder / "bright" / f"{i:03d}.png").unlink()
        Image.fromarray(pixels).save(folder / "bright" / f"{i:03d}.png")
    truth = folder / "ground_truth/bright"
    mask(truth / "000_mask.png", (56, 56))
    mask(truth / "001_mask.png", (28, 28), top=1)  # another size and 0 and 1 for 0 and 255
    mask(truth / "002_mask.png", (56, 28))
    (truth / "003_mask.png").write_bytes(b"no picture")
    mask(truth / "004_mask.png", empty=True)
    mask(truth / "999_mask.png")
    found = measure(folder, params, tmp_path)
    bright = found["kinds"][1]
    assert bright["masks"] == {"used": 3, "unusable": 3, "empty": 1}
    assert bright["regions"] == 2
    assert bright["pro"] == pytest.approx(1.0, abs=0.02)
    assert bright["pixel_auroc"] > 0.9
    assert found["all"]["regions"] == 2
    refused = dict(found["masks_refused"])
    assert list(refused) == ["bright/002_mask.png", "bright/003_mask.png", "bright/999_mask.png"]
    assert refused["bright/002_mask.png"] == (
        "the mask has 56 x 28 pixels and another shape than its image, 56 x 56"
    )  # fmt: skip
    assert "Bad images without a usable mask, which the figures of pixels leave out: 17." in found["notes"]
    assert "Masks that mark nothing, so that all pixels of their images count as normal: 1." in found["notes"]


def test_unreadable_files_are_quarantined_and_counted_and_an_empty_kind_has_no_figure(
    folder: Path, params: Params, tmp_path: Path
) -> None:
    (folder / "bright/cut.png").write_bytes(png()[:60])
    (folder / "good/empty.png").write_bytes(b"")
    (folder / "dark/out.png").symlink_to(tmp_path / "elsewhere.png")
    (tmp_path / "elsewhere.png").write_bytes(png())
    os.mkfifo(folder / "dark/pipe.png")
    (folder / "none").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken/a.png").write_bytes(b"x")
    found = measure(folder, params, tmp_path)
    assert [name for name, _ in found["quarantined"]] == [
        "good/empty.png", "bright/cut.png", "broken/a.png", "dark/out.png", "dark/pipe.png"
    ]  # fmt: skip
    assert found["kinds"][-2:] == [
        {"kind": "broken", "images": 0, "quarantined": 1},
        {"kind": "none", "images": 0, "quarantined": 0},
    ]
    assert "No image could be scored, so there is no figure: broken, none." in found["notes"]
    assert found["good"]["quarantined"] == 1
    assert measure(folder, params, tmp_path, follow_links=True)["kinds"][0]["images"] == 21


def test_images_of_many_sizes_and_colours_are_scored(folder: Path, params: Params, tmp_path: Path) -> None:
    for i, size in enumerate([(5, 5), (300, 40), (40, 300), (1000, 700)]):
        (folder / "bright" / f"{i:03d}.png").write_bytes(png(220, size=size, mode="RGB" if i % 2 else "L"))
    found = measure(folder, params, tmp_path)
    assert (found["quarantined"], found["kinds"][1]["auroc"][0]) == ([], 1.0)


def test_five_good_images_give_figures_and_a_stated_limit(folder: Path, params: Params, tmp_path: Path) -> None:
    for path in sorted((folder / "good").iterdir())[5:]:
        path.unlink()
    found = measure(folder, params, tmp_path)
    assert found["notes"][0].startswith("5 good images are few: ")
    assert found["good"]["false_alarms"][1]["high"] > 0.5


def test_a_level_out_of_reach_is_said_and_not_counted(folder: Path, params: Params, tmp_path: Path) -> None:
    class Coarse(Brightness):
        calibration = np.linspace(0.0, 100.0, 30)

    found = measure(folder, params, tmp_path, detector=Coarse())
    assert [at["share"] for at in found["kinds"][1]["found"]] == [None, 1.0]
    page = (tmp_path / "out/assessment.html").read_text()
    assert "out of reach: 30 calibration images give no p-value below 0.032; 1% takes 99" in page


def test_the_same_file_in_good_and_in_a_kind_is_named(folder: Path, params: Params, tmp_path: Path) -> None:
    (folder / "bright/copy.png").write_bytes((folder / "good/normal_0000.png").read_bytes())
    notes = measure(folder, params, tmp_path)["notes"]
    assert "Files that are in good/ and in a kind's folder as well: 1, such as bright/copy.png." in notes


@pytest.mark.parametrize("kind", ["good", "bright"])
def test_a_folder_in_which_nothing_can_be_scored_is_an_error_that_says_why(
    kind: str, params: Params, tmp_path: Path
) -> None:
    for name in ("good", "bright"):
        fill(tmp_path / "set" / name, 3, 100)
    for path in (tmp_path / "set" / kind).iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"can be scored \(the file is empty\)"):
        measure(tmp_path / "set", params, tmp_path)
    assert not (tmp_path / "out").exists()


def test_results_inside_the_images_or_in_a_file_are_refused(folder: Path, params: Params, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lies inside the images"):
        measure(folder, params, tmp_path, out=folder / "results")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="is a file; choose another --out"):
        measure(folder, params, tmp_path, out=tmp_path / "file")
    with pytest.raises(DataError, match="assess reads a folder on this machine"):
        assess("s3://bucket/set", params, tmp_path, None, Brightness())


def test_other_files_in_the_results_folder_stay_and_a_failed_assessment_changes_nothing(
    folder: Path, params: Params, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    measure(folder, params, tmp_path)
    (out / "mine.txt").write_text("kept")
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    class Failing(Brightness):
        def surprise_map(self, images: object) -> Any:
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError):
        measure(folder, params, tmp_path, detector=Failing())
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_opens_from_disk_says_what_it_is_for_and_fits_a_phone(
    folder: Path, params: Params, tmp_path: Path, browser: Browser, width: int
) -> None:
    mask(folder / "ground_truth/bright/000_mask.png")
    (folder / "bright" / EVIL).write_bytes(png(255))
    (folder / "bright" / f"cut {EVIL}").write_bytes(b"")
    measure(folder, params, tmp_path)
    page = browser.new_page(viewport={"width": width, "height": 900})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text))
    page.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
    page.goto((tmp_path / "out/assessment.html").as_uri())
    kinds = page.locator("#kinds tbody.kind th:not(tr.floor th)").all_inner_texts()
    assert [text.split("\n")[0] for text in kinds] == ["dark", "bright", "all together"]
    assert page.locator("#kinds tbody.kind").first.locator("tr.floor").count() == 2
    assert "below its floor" in page.locator("#kinds tbody.kind").first.inner_text()
    assert page.locator("#spent").inner_text().startswith("This changes nothing that is fitted.")
    assert (
        page.locator("section").all_inner_texts()[0].startswith("dark\nLowest scored: missed first, or not bad at all")
    )
    assert page.locator("img.map:visible").count() == page.locator(".stack").count() == 36
    page.get_by_label("map over the picture").uncheck()
    assert page.locator("img.map:visible").count() == 0
    page.keyboard.press("m")
    assert page.locator("img.map:visible").count() == 36
    assert page.locator("img.mask").count() == 1
    page.keyboard.press("o")
    assert page.locator("img.mask:visible").count() == 0
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.title().endswith("– assessment by densitywatch")
    assert problems == []
    page.close()


def test_the_verb_prints_figures_and_names_its_results(
    folder: Path,
    tmp_path: Path,
    project_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        "densitywatch.batches.assess.assessment.load_detector", lambda *_: (Brightness(), "brightness-1")
    )
    (tmp_path / "params.yaml").write_bytes((project_root / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["densitywatch", "assess", "set"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().out
    assert not end.value.code
    assert "good, 5% asked: 0.0% of 25 flagged (0.0% to 13.7%)" in said
    assert "bright (20): AUROC 1.000 (1.000 to 1.000), found at 1%: 100%, found at 5%: 100%" in said
    assert re.fullmatch(r"results: .*data/assessments/set", said.splitlines()[-1])
    assert (tmp_path / "data/assessments/set/assessment.html").is_file()


def test_a_real_detector_finds_scratches_and_its_map_overlaps_their_masks(params: Params, tmp_path: Path) -> None:
    detector = made(fitting_data(), ("own_place",), plates(99, seed=50))
    good = plates(25, seed=70)
    for kind, images in (("good", good), ("scratch", scratched(plates(20, seed=71))), ("fine", plates(20, seed=72))):
        (tmp_path / "set/test" / kind).mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image[0]).save(tmp_path / "set/test" / kind / f"{i:03d}.png")
    truth = np.zeros((64, 64), np.uint8)
    truth[12, 40:50] = 255
    (tmp_path / "set/ground_truth/scratch").mkdir(parents=True)
    for i in range(20):
        Image.fromarray(truth).save(tmp_path / f"set/ground_truth/scratch/{i:03d}_mask.png")
    found = measure(tmp_path / "set", params, tmp_path, detector=detector)
    fine, scratch = found["kinds"]
    assert (fine["kind"], scratch["kind"]) == ("fine", "scratch")
    assert scratch["auroc"][0] > 0.95
    assert scratch["below_floor"] == []
    assert scratch["found"][1]["share"] > 0.9
    assert 0.3 < fine["auroc"][0] < 0.7  # good images in a folder of bad ones
    assert (scratch["regions"], scratch["masks"]["used"]) == (20, 20)
    assert scratch["pixel_auroc"] > 0.9
    assert scratch["pro"] > 0.8
    assert "and brightest where hardly any has." in (tmp_path / "out/assessment.html").read_text()


def test_good_images_that_the_detector_is_made_of_are_counted(folder: Path, params: Params, tmp_path: Path) -> None:
    images = [np.asarray(Image.open(path)) for path in sorted((folder / "good").iterdir())]
    table = pa.table(
        {
            "split": ["train", "calibration", "test", *["gate"] * 22],
            "sha256": [hashlib.sha256(image.tobytes()).hexdigest() for image in images],
        }
    )
    (tmp_path / "data/prepared").mkdir(parents=True)
    pq.write_table(table, tmp_path / "data/prepared/manifest.parquet")
    assert "fitted and calibrated on: 2 of 25. If it is this" in measure(folder, params, tmp_path)["notes"][0]
    (tmp_path / "data/prepared/manifest.parquet").write_bytes(b"cut")
    assert measure(folder, params, tmp_path)["notes"] == []
