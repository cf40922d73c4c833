from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from densitywatch.batches.flags import fewest_to_flag
from densitywatch.batches.results import histogram
from densitywatch.batches.score_batch import score_source
from densitywatch.detector import conformal
from densitywatch.params import Params
from tests.detector.standin import Brightness, fill


def test_a_histogram_holds_every_image_whatever_its_score() -> None:
    found = histogram(np.array([-1e300, 0.0, 5.0, 1e300]), np.linspace(0, 10, 100))
    assert sum(found["batch"]) == 4
    assert (found["batch"][0], found["batch"][-1]) == (1, 1)
    assert sum(histogram(np.zeros(3), np.zeros(5))["batch"]) == 3  # all alike


def test_images_are_flagged_from_the_number_that_is_said_and_not_before() -> None:
    assert fewest_to_flag(525, 0.1, np.zeros(5999)) == 1
    calibration = np.arange(999.0)
    for images in (10, 100, 1000, 5000):
        few = fewest_to_flag(images, 0.1, calibration)
        for count, any_flagged in ((few, True), (few - 1, False)):
            p = np.full(images, 0.9)
            p[:count] = conformal.p_values(calibration, np.full(count, 1e9))
            assert conformal.benjamini_hochberg(p, 0.1).any() == any_flagged


def test_published_scores_whose_texts_are_no_utf_8_are_scored_anew(params: Params, tmp_path: Path) -> None:
    fill(tmp_path / "batch", 10, bright=1)
    out = tmp_path / "out"
    before = score_source("batch", params, tmp_path, out, Brightness())
    table = pq.read_table(out / "scores.parquet")
    bad = pa.array([b"\x80.png"] * len(table), pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(table.set_column(table.schema.get_field_index("path"), "path", bad), out / "scores.parquet")
    detector = Brightness()
    again = score_source("batch", params, tmp_path, out, detector)
    assert detector.seen >= 11, "no row of the damaged table was used"
    assert again["content"] == before["content"]
    assert "\x80" not in "".join(pq.read_table(out / "scores.parquet").column("path").to_pylist())
