"""assess with pictures that are no squares: figures of pixels and a page whose maps lie over what they are maps of."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from densitywatch.arrays import Floats, Pixels
from densitywatch.batches.assess.assessment import assess
from densitywatch.detector import conformal
from densitywatch.params import Params

SHAPE = (40, 160)


class Brightest:
    """An image is the more outlying the brighter its brightest 8 x 8 pixels are; the map has a value for each."""

    size, channels, resize = SHAPE, 1, "stretch"
    false_discovery_rate, false_alarm_rate = 0.1, 0.05
    class_names: tuple[str, ...] = ()
    digest = "brightest"
    calibration = np.linspace(0.0, 100.0, 99)
    has_places = True
    place_maxima = calibration

    def surprise_map(self, images: Pixels) -> Floats:
        assert images.shape[1:] == (1, *SHAPE)
        return images.reshape(-1, 5, 8, 20, 8).mean((2, 4))

    def place_p_values(self, images: Pixels) -> Floats:
        return conformal.place_p_values(self.calibration, self.surprise_map(images))

    def score(self, images: Pixels) -> SimpleNamespace:
        score = self.surprise_map(images).max((1, 2))
        return SimpleNamespace(score=score, p_value=conformal.p_values(self.calibration, score))


def write(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_masks_and_maps_of_wide_pictures_fit_on_each_other(params: Params, tmp_path: Path) -> None:
    for i in range(6):
        good = np.full((80, 320), 30 + i, np.uint8)  # twice the size that the detector takes
        write(tmp_path / f"set/good/{i}.png", good)
        bad, mask = good.copy(), np.zeros((80, 320), np.uint8)
        part = (slice(32, 48), slice(16 * (i + 1), 16 * (i + 3)))
        bad[part], mask[part] = 220, 255
        write(tmp_path / f"set/spot/{i}.png", bad)
        write(tmp_path / f"set/ground_truth/spot/{i}_mask.png", mask)
    found = assess("set", params, tmp_path, detector=Brightest())
    assert found["size"] == list(SHAPE)
    row = found["kinds"][0]
    assert row["auroc"][0] == 1.0
    assert row["pixel_auroc"] > 0.97
    assert row["pro"] > 0.9
    page = (Path(found["out"]) / "assessment.html").read_text()
    assert "160 x 40 pixels" in page
    assert set(re.findall(r"aspect-ratio: (\d+ / \d+)", page)) == {"160 / 40"}
