from __future__ import annotations

import pytest

from densitywatch.pages.words import DASH, duration, flat, number, readable


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, DASH),
        (435183, "435,183"),
        (0.0630701, "0.06307"),
        (123456.7, "123,457"),
        (True, "yes"),
        ("abc", "abc"),
    ],
)
def test_numbers_are_short_but_counts_are_whole(value: object, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "12.3 ms"), (0.9999, "1 s"), (7.336, "7.34 s"), (250, "4 min 10 s"), (7500, "2 h 5 min")],
)
def test_a_duration_is_shown_in_a_unit_that_suits_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_keys_become_words() -> None:
    assert readable("elbo_bits_per_dim") == "ELBO bits/dim"
    assert readable("fpr_at_95_tpr") == "FPR at 95 TPR"


def test_nested_values_become_pairs_in_order() -> None:
    nested = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": None}], "f": []}
    assert flat(nested) == [("a b", 1), ("a c", "1, 2"), ("d 1 e", None), ("f", None)]
