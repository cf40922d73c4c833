"""Images drawn at random for the review: which ones, that they stay the same, and what may be made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from densitywatch.batches.batch_report import flagged
from densitywatch.batches.results_folder import DRAWN, SCORES
from densitywatch.batches.review.judging import give_verdicts
from densitywatch.batches.review.originals import collect
from densitywatch.batches.review.page import ReviewImages
from densitywatch.batches.review.random_draw import _in_order, draw, drawn, fair_sample
from densitywatch.batches.score_batch import score_source
from densitywatch.batches.verdicts import read_verdicts
from densitywatch.data.training_only import MARK, for_training_only
from densitywatch.errors import DataError
from densitywatch.params import Params
from tests.detector.standin import Brightness, png


def test_the_same_images_are_drawn_again_and_a_longer_draw_adds_to_them(scored: Path, tmp_path: Path) -> None:
    first = draw(scored, 4, tmp_path, seed=1)
    assert len(set(first)) == 4
    assert draw(scored, 4, tmp_path, seed=1) == first == drawn(scored)
    assert draw(scored, 9, tmp_path, seed=1)[:4] == first
    assert draw(scored, 2, tmp_path, seed=1) == drawn(scored), "what was drawn is kept"
    (scored / DRAWN).unlink()
    assert draw(scored, 4, tmp_path, seed=1) == first
    (scored / DRAWN).unlink()
    assert draw(scored, 4, tmp_path, seed=2) != first


def test_a_longer_draw_with_another_seed_adds_other_images_only(scored: Path, tmp_path: Path) -> None:
    first = draw(scored, 10, tmp_path, seed=1)
    both = draw(scored, 20, tmp_path, seed=2)
    assert both[:10] == first
    assert len(set(both)) == 20


def test_all_scored_images_are_drawn_where_more_are_asked_for(scored: Path, tmp_path: Path) -> None:
    table = pq.read_table(scored / SCORES)
    assert len(draw(scored, 1000, tmp_path, seed=1)) == table.num_rows == 24
    for count in (0, 1001):
        with pytest.raises(DataError, match="1 to 1000 images can be drawn at random"):
            draw(scored, count, tmp_path, seed=1)


def test_every_scored_image_is_equally_likely_to_be_drawn_flagged_or_not(scored: Path) -> None:
    counts = np.zeros(pq.read_table(scored / SCORES).num_rows)
    for seed in range(2000):
        for row, _, _ in _in_order(scored, 5, "the content", seed):
            counts[row] += 1
    assert stats.chisquare(counts).pvalue > 0.001


def test_a_rescored_batch_keeps_its_draw_and_one_of_other_files_does_not(
    scored: Path, tmp_path: Path, params: Params
) -> None:
    before = draw(scored, 6, tmp_path, seed=1)
    other = Brightness()
    other.digest = "another detector"
    score_source("batch", params, tmp_path, scored, other)
    assert drawn(scored) == before
    (tmp_path / "batch" / "new.png").write_bytes(png(60))
    score_source("batch", params, tmp_path, scored, other)
    assert drawn(scored) == []


def test_an_image_that_is_gone_from_the_source_stops_the_draw_and_keeps_the_old_one(
    scored: Path, tmp_path: Path
) -> None:
    before = draw(scored, 2, tmp_path, seed=1)
    for path in (tmp_path / "batch").glob("*.png"):
        path.write_bytes(png(1, seed=9))
    with pytest.raises(DataError, match="22 of the 22 images drawn at random are not there any more"):
        draw(scored, 1000, tmp_path, seed=1)
    assert drawn(scored) == before


def test_a_damaged_draw_is_named(scored: Path, tmp_path: Path) -> None:
    draw(scored, 2, tmp_path, seed=1)
    (scored / DRAWN).write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"drawn\.parquet: damaged; remove it and draw again"):
        ReviewImages(scored)


def test_the_review_asks_about_flagged_images_first_and_says_why_each_is_there(scored: Path, tmp_path: Path) -> None:
    draw(scored, 1000, tmp_path, seed=1)
    images = ReviewImages(scored)
    assert images.keys[:4] == list(flagged(scored))
    assert len(set(images.keys)) == len(images.keys) == 24
    marks = [(item["flagged"], item["drawn"]) for item in map(images.item, range(24))]
    assert marks == [(True, True)] * 4 + [(False, True)] * 20
    assert all(images.item(number)["picture"].startswith("data:image/png") for number in (0, 23))
    given = give_verdicts(scored, {images.keys[0]: "outlier", images.keys[1]: "fine", images.keys[9]: "outlier"})
    state = images.state(given, "")
    assert (state["precision"]["reviewed"], state["precision"]["outliers"]) == (2, 1), "of flagged images alone"
    assert state["drawn"] == {"images": 24, "reviewed": 3, "outliers": 2}


def test_fine_images_are_for_training_alone_until_a_whole_random_draw_was_judged(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "reviewed"

    def names() -> set[str]:
        return {path.stem for path in (target / "fine").glob("*")}

    keys = list(flagged(scored))
    draw_keys = draw(scored, 5, tmp_path, seed=1)
    judged = {key: "fine" for key in {*keys, *draw_keys[:-1]}}
    give_verdicts(scored, judged)  # type: ignore[arg-type]
    assert fair_sample(scored, read_verdicts(scored)) == frozenset()
    collect(scored, target, tmp_path)
    assert names() == {f"{MARK}{digest}" for _, digest in judged}
    assert all(for_training_only(f"somewhere/{name}.png") for name in names())
    assert "4 of the 5 images drawn at random have a verdict" in capsys.readouterr().err
    give_verdicts(scored, {draw_keys[-1]: "fine"})
    collect(scored, target, tmp_path)
    fair = {digest for _, digest in draw_keys}
    assert names() == fair | {f"{MARK}{digest}" for _, digest in keys if digest not in fair}
