from __future__ import annotations

import numpy as np
import pytest

from densitywatch.batches.levels import in_force, in_words, letters, percent, slider_levels, strength


@pytest.mark.parametrize("images", [1, 9, 39, 400, 6000, 5_000_000])
@pytest.mark.parametrize("rate", [0.001, 0.01, 0.05, 0.0123])
def test_levels_begin_at_the_smallest_p_value_and_hold_the_one_in_force(images: int, rate: float) -> None:
    level = in_force(rate, images)
    levels = slider_levels(level, images)
    assert levels == sorted(set(levels))
    assert levels[0] == 1 / (images + 1)
    assert max(rate, 1 / (images + 1)) == level in levels
    assert levels[-1] == 0.5
    assert len(levels) <= 26


@pytest.mark.parametrize("images", [39, 99, 399, 999])
def test_a_place_has_the_letter_of_the_first_level_that_marks_it(images: int) -> None:
    p = (1 + np.arange(images + 1)).reshape(4, -1) / (images + 1)  # every p-value there can be
    levels = slider_levels(in_force(0.05, images), images)
    written = letters(p, levels)
    assert len(written) == p.size
    for number, level in enumerate(levels):
        last = chr(ord("A") + number)
        assert [letter <= last for letter in written] == (p <= level).ravel().tolist()
    assert written[0] == "A"
    assert written[-1] == "~"


def test_words_count_normal_pictures() -> None:
    assert in_words(1 / 400, 399) == "At most 1 of 400 normal pictures has an area as unusual as this anywhere."
    assert in_words(12 / 4000, 3999) == "At most 12 of 4,000 normal pictures have an area as unusual as this anywhere."
    assert in_words(1.0, 399) == "Every normal picture has an area that is more unusual."
    assert [percent(level) for level in (0.05, 1 / 40, 0.5, 1e-4)] == ["5 %", "2.5 %", "50 %", "0.01 %"]


def test_the_map_is_clear_at_one_and_full_at_the_smallest_p_value() -> None:
    drawn = strength(np.array([1.0, 0.5, 0.05, 1 / 40]), 39)
    assert (np.diff(drawn) > 0).all()
    assert (drawn[0], drawn[-1]) == (0.0, 1.0)
