from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from densitywatch.data.encoding import png


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
@pytest.mark.parametrize("optimize", [False, True])
def test_a_png_gives_back_every_pixel(channels: int, mode: str, optimize: bool) -> None:
    image = np.random.default_rng(0).integers(0, 256, (channels, 5, 7), dtype=np.uint8)
    with Image.open(io.BytesIO(png(image, optimize=optimize))) as opened:
        assert (opened.format, opened.mode, opened.size) == ("PNG", mode, (7, 5))
        pixels = np.asarray(opened)
    assert (pixels.reshape(5, 7, channels).transpose(2, 0, 1) == image).all()
