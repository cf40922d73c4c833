from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from densitywatch.data.decoding import sandbox
from densitywatch.data.decoding.images import (
    MAX_BYTES,
    decode_image,
    decode_images,
    decode_marks,
    decode_picture,
    fit_image,
)
from densitywatch.errors import DataError

Pixels = npt.NDArray[np.uint8]


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format=kind, **options)
    return out.getvalue()


def grey(data: bytes) -> Pixels:
    return decode_image(data, size=28, channels=1, resize="crop")


@pytest.fixture(scope="module")
def coat(garments: Pixels) -> Image.Image:
    return Image.fromarray(garments[0])


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "PPM"])
def test_a_lossless_image_of_the_right_size_keeps_its_pixels(coat: Image.Image, kind: str) -> None:
    assert np.array_equal(grey(saved(coat, kind))[0], np.asarray(coat))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_a_lossy_image_comes_close(coat: Image.Image, kind: str) -> None:
    difference = grey(saved(coat, kind, quality=95))[0].astype(int) - np.asarray(coat).astype(int)
    assert np.abs(difference).mean() < 4


def test_grey_becomes_rgb_by_repeating_and_rgb_becomes_grey_by_weighing(coat: Image.Image) -> None:
    colour = decode_image(saved(coat), size=28, channels=3, resize="crop")
    assert colour.shape == (3, 28, 28)
    assert all(np.array_equal(plane, np.asarray(coat)) for plane in colour)
    red = Image.new("RGB", (28, 28), (255, 0, 0))
    assert set(np.unique(grey(saved(red)))) == {76}  # ITU-R 601: 0.299 * 255


def test_alpha_is_composited_over_black() -> None:
    image = Image.new("RGBA", (28, 28), (200, 200, 200, 0))
    image.paste((200, 200, 200, 255), (0, 0, 14, 28))
    pixels = grey(saved(image))[0]
    assert set(np.unique(pixels[:, :14])) == {200}
    assert set(np.unique(pixels[:, 14:])) == {0}


def test_a_palette_with_a_transparent_entry_is_composited_over_black() -> None:
    image = Image.new("P", (28, 28), 1)
    image.putpalette([255, 255, 255, 9, 9, 9])
    image.paste(0, (0, 0, 14, 28))
    pixels = grey(saved(image, transparency=0))[0]
    assert set(np.unique(pixels[:, :14])) == {0}
    assert set(np.unique(pixels[:, 14:])) == {9}


def test_grey_with_one_transparent_value_is_composited_over_black() -> None:
    image = Image.new("L", (28, 28), 100)
    image.paste(50, (0, 0, 14, 28))
    pixels = grey(saved(image, transparency=50))[0]
    assert set(np.unique(pixels[:, :14])) == {0}
    assert set(np.unique(pixels[:, 14:])) == {100}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16"])
def test_every_usual_mode_is_read_and_named(coat: Image.Image, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.asarray(coat).astype(np.uint16) * 257)
    elif mode == "LAB":
        image = Image.new("LAB", (28, 28), (128, 128, 128))
    else:
        image = coat.convert("RGB").convert(mode) if mode != "LA" else coat.convert("LA")
    kind = "JPEG" if mode == "YCbCr" else "TIFF"
    picture = decode_picture(saved(image, kind), size=28, channels=3, resize="crop")
    assert picture.pixels.shape == (3, 28, 28)
    assert picture.pixels.dtype == np.uint8
    assert picture.mode == ("RGB" if mode == "YCbCr" else mode)


def test_sixteen_bits_are_scaled_and_not_clipped(coat: Image.Image) -> None:
    deep = Image.fromarray(np.asarray(coat).astype(np.uint16) * 257)
    assert np.array_equal(grey(saved(deep))[0], np.asarray(coat))


def test_floating_point_pixels_from_0_to_1_are_read_and_any_others_refused_with_advice() -> None:
    assert set(np.unique(grey(saved(Image.new("F", (28, 28), 0.5), "TIFF")))) == {128}
    for value in (1.5, -0.1, float("nan")):
        with pytest.raises(DataError, match="no agreed range"):
            grey(saved(Image.new("F", (28, 28), value), "TIFF"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_the_time_that_exif_gives_comes_along_the_original_one_first(kind: str) -> None:
    image, exif = Image.new("L", (20, 20), 90), Image.Exif()
    assert decode_picture(saved(image, kind), size=20, channels=1, resize="crop").taken == ""
    exif[0x0132] = "2026:03:04 05:06:07"
    assert decode_picture(saved(image, kind, exif=exif), size=20, channels=1, resize="crop").taken == exif[0x0132]
    exif.get_ifd(0x8769)[0x9003] = "2025:01:02 03:04:05"
    told = decode_picture(saved(image, kind, exif=exif), size=20, channels=1, resize="crop").taken
    # Pillow writes the second folder of EXIF into no TIFF file, so there is only one time in it
    assert told == ("2026:03:04 05:06:07" if kind == "TIFF" else "2025:01:02 03:04:05")


@pytest.mark.parametrize("value", ["yesterday", "2026:03:04 05:06:07 and more", 7])
def test_a_time_of_another_form_is_none(value: object) -> None:
    exif = Image.Exif()
    exif[0x0132] = value
    found = decode_picture(saved(Image.new("L", (9, 9)), "PNG", exif=exif), size=9, channels=1, resize="crop").taken
    assert found == ""


def test_exif_rotation_is_applied() -> None:
    image = Image.new("L", (40, 20), 0)
    image.paste(255, (0, 0, 40, 5))  # a bright top edge; orientation 6 shows it at the right
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = decode_picture(saved(image, "PNG", exif=exif), size=20, channels=1, resize="stretch")
    assert (picture.width, picture.height) == (20, 40)
    assert picture.pixels[0, :, -3:].min() > 200
    assert picture.pixels[0, :, :10].max() < 30


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_and_pages_are_refused(coat: Image.Image, kind: str) -> None:
    pages = [coat.rotate(90), coat.rotate(180)]
    with pytest.raises(DataError, match="several pages"):
        grey(saved(coat, kind, save_all=True, append_images=pages))


def test_the_preview_that_a_phone_appends_does_not_count_as_a_page(coat: Image.Image) -> None:
    photo = saved(coat.convert("RGB"), "MPO", save_all=True, append_images=[coat.convert("RGB")])
    assert grey(photo).shape == (1, 28, 28)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "HTML or SVG"),
        (b"\xef\xbb\xbf  <!doctype html><html></html>", "HTML or SVG"),
        (b"This is a text file.", "known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "known format"),  # would start Ghostscript
        (b"\x89PNG\r\n\x1a\n", "broken|known format"),
        (b"\0" * (MAX_BYTES + 1), "larger than 64 MiB"),
    ],
)
def test_what_is_no_image_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        grey(data)


def bomb(width: int, height: int) -> bytes:
    """A small PNG whose header promises many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [12_500, 15_000, 14_000, 60_000])
def test_a_decompression_bomb_is_refused_from_its_header(side: int) -> None:
    with pytest.raises(DataError, match=r"more than 150,000,000"):
        grey(bomb(side, side))


def shirt(coat: Image.Image, kind: str) -> bytes:
    return saved(coat.resize((60, 60)), kind)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_half_a_file_is_refused(coat: Image.Image, kind: str) -> None:
    data = shirt(coat, kind)
    with pytest.raises(DataError):
        grey(data[: len(data) // 2])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_png_is_noticed_or_harmless(coat: Image.Image, position: float, bit: int) -> None:
    data = bytearray(saved(coat))
    data[int(position * len(data))] ^= 1 << bit
    try:
        pixels = grey(bytes(data))
    except DataError:
        return
    assert np.array_equal(pixels[0], np.asarray(coat))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"]), edits=st.data())
def test_broken_bytes_give_an_image_or_a_reason_and_nothing_else(
    coat: Image.Image, kind: str, edits: st.DataObject
) -> None:
    data = bytearray(shirt(coat, kind))
    for _ in range(edits.draw(st.integers(1, 6))):
        data[edits.draw(st.integers(0, len(data) - 1))] = edits.draw(st.integers(0, 255))
    try:
        pixels = grey(bytes(data[: edits.draw(st.integers(1, len(data)))]))
    except DataError as error:
        reason = str(error)
    else:
        reason = "none"
        assert pixels.shape == (1, 28, 28)
    assert 0 < len(reason) < 200
    assert "\n" not in reason


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.integers(4, 40),
    resize=st.sampled_from(["crop", "pad", "stretch"]),
    channels=st.sampled_from([1, 3]),
)
def test_any_shape_is_brought_to_size(width: int, height: int, size: int, resize: str, channels: int) -> None:
    image = Image.new("RGB", (width, height), (120, 120, 120))
    pixels = fit_image(image, size=size, channels=channels, resize=resize)  # type: ignore[arg-type]
    assert pixels.shape == (channels, size, size)
    assert pixels.flags.c_contiguous
    assert pixels.max() == 120
    if resize != "pad" or width == height:
        assert pixels.min() == 120


def test_crop_keeps_the_middle_pad_keeps_all_and_stretch_fills() -> None:
    image = Image.new("L", (60, 20), 0)
    image.paste(255, (20, 0, 40, 20))
    fitted: Callable[[str], Pixels] = lambda resize: fit_image(image, size=20, channels=1, resize=resize)[0]  # type: ignore[arg-type] # noqa: E731
    assert fitted("crop").min() == 255
    padded = fitted("pad")
    assert padded[:6].max() == 0
    assert padded[10, 10] > 240
    assert padded[10, 1] < 15
    assert fitted("stretch")[:, 10].min() > 240
    assert fitted("stretch")[:, 1].max() < 15


def regions(mask: bytes, resize: str = "stretch", size: int | list[int] = 64) -> int:
    """Number of connected regions that are left of a mask."""
    marked = decode_marks(mask, size=size, resize=resize).pixels  # type: ignore[arg-type]
    assert set(np.unique(marked)) <= {0, 255}
    return int(ndimage.label(marked[0], np.ones((3, 3)))[1])


def test_no_region_of_a_mask_is_lost_however_thin_or_small_beside_a_large_one() -> None:
    mask = np.zeros((1024, 1024), np.uint8)
    mask[100:300, 100:300] = 255
    mask[600:900, 700] = 255  # a line of one pixel
    mask[700, 200] = 255
    for resize in ("crop", "pad", "stretch"):
        assert regions(saved(Image.fromarray(mask)), resize) == 3
    assert regions(saved(Image.fromarray(mask // 255))) == 3  # 0 and 1
    assert regions(saved(Image.fromarray(mask).convert("1"))) == 3
    numbered = mask // 255
    numbered[600:900, 700], numbered[700, 200] = 2, 7  # a number for each region
    assert regions(saved(Image.fromarray(numbered))) == 3
    assert regions(saved(Image.fromarray(numbered.astype(np.uint16)))) == 3
    line = decode_marks(saved(Image.fromarray(mask)), size=64, resize="stretch").pixels[0, :, 700 // 16]
    assert np.flatnonzero(line).tolist() == list(range(600 // 16, 900 // 16 + 1))


def test_a_mask_is_turned_and_placed_as_its_picture_is() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = np.zeros((60, 120), np.uint8)
    picture[10:20, 30:50] = 255
    for kind, options in (("PNG", {}), ("JPEG", {"quality": 60})):  # a JPEG has faint marks beside its edges
        data = saved(Image.fromarray(picture), kind, exif=exif, **options)
        for resize, size in (("crop", 40), ("pad", 40), ("stretch", [120, 60])):
            marks = decode_marks(data, size=size, resize=resize).pixels[0] > 0  # type: ignore[arg-type]
            seen = decode_picture(data, size=size, channels=1, resize=resize).pixels[0] > 127  # type: ignore[arg-type]
            assert marks.any()
            assert not (seen & ~marks).any()
            assert not (marks & ~ndimage.binary_dilation(seen, np.ones((3, 3)))).any()


def test_one_process_serves_one_request_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Counted(sandbox._Child):
        def __init__(self) -> None:
            started.append(self)
            super().__init__()

    sandbox.close()
    monkeypatch.setattr(sandbox, "_Child", Counted)
    out = io.BytesIO()
    Image.new("L", (9, 9), 7).save(out, "PNG")
    for _ in range(5):
        assert len(decode_images([out.getvalue(), b"none", b""], size=8, channels=1, resize="crop")) == 3
        assert decode_image(out.getvalue(), size=8, channels=1, resize="crop").max() == 7
    assert len(started) == 1, "a process a request would cost a second a request"
