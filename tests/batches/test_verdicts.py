from __future__ import annotations

from densitywatch.batches.verdicts import precision


def test_precision_comes_with_an_interval() -> None:
    assert precision([None, None]) is None
    some = precision(["outlier"] * 8 + ["fine"] * 2)
    assert some is not None
    assert (some["reviewed"], some["outliers"]) == (10, 8)
    assert 0.4 < some["low"] < 0.8 < some["high"] < 1.0
    assert precision(["fine"])["low"] == 0.0  # type: ignore[index]
