from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from densitywatch.batches.photos import BYTES, photo_again, photo_of, small_file
from densitywatch.data.decoding.images import decode_picture
from densitywatch.data.inputs.entries import Entry, SourceUnreachable
from densitywatch.errors import DataError


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def opened(photo: bytes | None) -> Image.Image:
    assert photo is not None
    assert len(photo) <= BYTES
    return Image.open(io.BytesIO(photo))


@pytest.mark.parametrize(("resize", "shape"), [("crop", (400, 400)), ("pad", (512, 512)), ("stretch", (512, 341))])
def test_a_photo_shows_what_the_detector_sees_with_more_pixels(resize: Any, shape: tuple[int, int]) -> None:
    pixels = np.zeros((400, 600, 3), np.uint8)
    pixels[:, 300:] = (200, 100, 0)
    seen = decode_picture(png(pixels), size=64, channels=3, resize=resize)
    shown = opened(photo_of(png(pixels), seen, channels=3, resize=resize))
    assert shown.size == shape
    again = np.asarray(shown.resize((64, 64), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    assert np.abs(again.astype(int) - seen.pixels).mean() < 3


@pytest.mark.parametrize("size", [(20_000, 3), (3, 20_000), (1, 1)])
@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
def test_a_photo_of_any_shape_is_small(size: tuple[int, int], resize: Any) -> None:
    data = png(np.full((size[1], size[0]), 99, np.uint8))
    seen = decode_picture(data, size=32, channels=1, resize=resize)
    assert 1 <= max(opened(photo_of(data, seen, channels=1, resize=resize)).size) <= 512


def test_small_pictures_keep_every_pixel_and_noise_loses_some() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    small = Image.fromarray(noise[:100, :120])
    assert (np.asarray(opened(small_file(small))) == noise[:100, :120]).all()
    assert max(opened(small_file(Image.fromarray(noise))).size) < 512
    assert small_file(Image.fromarray(noise)) == small_file(Image.fromarray(noise))


def test_a_file_that_changed_or_went_away_has_no_photo() -> None:
    data = png(np.full((20, 30), 99, np.uint8))
    seen = decode_picture(data, size=8, channels=1, resize="stretch")
    facts: dict[str, Any] = {"channels": 1, "resize": "stretch"}

    def fails(error: Exception) -> Entry:
        def read() -> bytes:
            raise error

        return Entry("a.png", read)

    digest = hashlib.sha256(data).hexdigest()
    assert opened(photo_again(Entry("a.png", lambda: data), digest, seen, **facts)).size == (30, 20)
    assert photo_again(Entry("a.png", lambda: data + b" "), digest, seen, **facts) is None
    assert photo_again(fails(DataError("gone")), digest, seen, **facts) is None
    assert photo_of(data[:40], seen, **facts) is None
    with pytest.raises(SourceUnreachable):
        photo_again(fails(SourceUnreachable("the store is away")), digest, seen, **facts)
