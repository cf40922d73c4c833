"""Why an image was flagged, in words."""

from __future__ import annotations

import numpy as np

from densitywatch.detector.detector import Detector
from tests.small_project import SIZE, bars


def test_an_explanation_names_what_spoke_where_and_how_rare_it_is(loaded: Detector) -> None:
    images, _ = bars(3, seed=54)
    images[0] = 0
    images[1, 0, :, SIZE // 2 :] = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE // 2))
    scores = loaded.score(images)
    plain, busy, normal = (loaded.explain(scores, i) for i in range(3))
    assert "plainer" in plain
    assert "right half" in busy
    assert "busier" in busy
    assert "normal image" in normal
    for text in (plain, busy, normal):
        assert text[0].isupper()
        assert text.endswith(".")
