"""Images that are no squares, and squares made of them: every pixel where it belongs, and nothing lost in silence."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from densitywatch.arrays import Pixels
from densitywatch.data.dataset import open_split, read_info
from densitywatch.data.decoding.images import decode_picture, fit_image
from densitywatch.data.fetch import fetch
from densitywatch.data.groups.likeness import Looks
from densitywatch.data.prepare import prepare
from densitywatch.data.reading import reading_size, resized, stored_size
from densitywatch.errors import DataError, ModelError
from densitywatch.sizes import as_size, for_json, height_width, in_pixels, read_size
from tests.data.conftest import MakeParams


def encoded(pixels: Pixels, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def folder_of(root: Path, shapes: list[tuple[int, int]]) -> None:
    (root / "images").mkdir()
    for number, (height, width) in enumerate(shapes):
        (root / f"images/{number:03d}.png").write_bytes(encoded(noise(height, width, number)))


def test_a_size_is_the_same_after_json_and_in_words() -> None:
    for size in (28, (500, 2000)):
        assert read_size(for_json(size)) == size
        assert as_size(*height_width(size)) == size
    assert in_pixels((500, 2000)) == "2000 x 500"
    for no_size in ("28", [1], [1, 2, 3], [1.0, 2.0], None, True):
        with pytest.raises(ValueError, match="is no size of images"):
            read_size(no_size)


def test_an_image_of_the_wanted_shape_keeps_its_pixels() -> None:
    pixels = noise(30, 120)
    for resize in ("crop", "pad", "stretch"):
        seen = decode_picture(encoded(pixels), size=(30, 120), channels=1, resize=resize)
        np.testing.assert_array_equal(seen.pixels[0], pixels)
        assert (seen.width, seen.height) == (120, 30)


def test_crop_keeps_the_middle_part_of_the_wanted_shape_pad_all_of_it_and_stretch_fills() -> None:
    image = Image.fromarray(np.repeat(np.linspace(0, 240, 80).astype(np.uint8)[None], 80, 0))  # darker to the left
    cropped, padded, stretched = (
        fit_image(image, size=(20, 80), channels=1, resize=resize)[0] for resize in ("crop", "pad", "stretch")
    )
    assert cropped.shape == padded.shape == stretched.shape == (20, 80)
    assert abs(int(cropped[10, 2]) - 7) < 4  # whole rows, a quarter of the columns' height
    assert abs(int(cropped[10, 77]) - 233) < 4
    assert (padded[:, :29] == 0).all()
    assert (padded[:, 51:] == 0).all()
    assert int(padded[10, 49]) > 200
    assert abs(int(stretched[10, 77]) - 233) < 4
    upright = fit_image(image, size=(80, 20), channels=1, resize="crop")[0]
    assert abs(int(upright[40, 10]) - 123) < 6  # the middle columns alone
    assert int(upright.max()) - int(upright.min()) < 70


def test_a_jpeg_on_its_side_is_turned_before_it_is_fitted() -> None:
    pixels = np.repeat(np.linspace(0, 255, 2000).astype(np.uint8)[:, None], 500, 1)  # 500 wide, darker at the top
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: what is at the top comes to the right
    seen = decode_picture(encoded(pixels, "JPEG", exif=exif), size=(125, 500), channels=1, resize="stretch")
    assert (seen.width, seen.height) == (2000, 500)
    assert seen.pixels.shape == (1, 125, 500)
    assert int(seen.pixels[0, 60, 5]) > 240 > 15 > int(seen.pixels[0, 60, 495])


@pytest.mark.parametrize(("size", "resize"), [(256, "stretch"), (256, "pad"), ((100, 10_000), "stretch")])
def test_a_picture_of_20000_x_200_pixels_is_read(
    size: int | tuple[int, int], resize: Literal["crop", "pad", "stretch"]
) -> None:
    pixels = np.zeros((200, 20_000), np.uint8)
    pixels[:, 10_000:] = 200
    seen = decode_picture(encoded(pixels), size=size, channels=1, resize=resize)
    height, width = height_width(size)
    assert (seen.width, seen.height) == (20_000, 200)
    middle = seen.pixels[0, height // 2 - 1 : height // 2 + 1].max(0)
    assert int(middle[width // 4]) < 10
    assert int(middle[3 * width // 4]) > 90  # padded, the picture is two or three rows high


def test_a_dataset_keeps_height_and_width_and_its_readers_see_squares(tmp_path: Path, make_params: MakeParams) -> None:
    folder_of(tmp_path, [(50, 200)] * 30)
    params = make_params(source="folder", address="images", size=[50, 200], validation=0.2, calibration=0.2)
    fetch(params, tmp_path)
    prepare(params, tmp_path)
    info = read_info(tmp_path / "data/prepared")
    assert info.size == (50, 200)
    train = open_split(tmp_path / "data/prepared", "train")
    assert train.images.shape[1:] == (1, 50, 200)
    published = {encoded(noise(50, 200, number)) for number in range(30)}
    assert {encoded(np.asarray(image)[0]) for image in train.images} <= published
    assert train.at(32).images[:2].shape == (2, 1, 32, 32)
    assert reading_size(None, info.size) == 32
    assert reading_size(None, (20, 400)) == 20


def test_images_of_many_sizes_become_one_and_much_that_is_cut_away_is_said(
    tmp_path: Path, make_params: MakeParams, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_of(tmp_path, [(40, 40), (300, 20), (64, 1000), (9, 9), (200, 2000)] * 4)
    fetch(make_params(source="folder", address="images"), tmp_path)
    capsys.readouterr()
    for resize, told in (("crop", True), ("stretch", False), ("pad", False)):
        prepare(make_params(source="folder", address="images", size=32, resize=resize), tmp_path)
        said = capsys.readouterr().err
        assert ("warning: data.resize: crop cuts 55% of the images away on average" in said) == told
        assert ("as [64, 40]" in said) == told
    assert read_info(tmp_path / "data/prepared").size == 32


def test_what_is_of_the_wanted_shape_is_cut_without_a_word(
    tmp_path: Path, make_params: MakeParams, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_of(tmp_path, [(50, 200)] * 20)
    fetch(make_params(source="folder", address="images"), tmp_path)
    prepare(make_params(source="folder", address="images", size=[25, 100]), tmp_path)
    assert "cuts" not in capsys.readouterr().err


def test_looks_of_wide_images_tell_copies_from_others() -> None:
    one = noise(24, 96)[None, None]
    near = np.clip(one.astype(int) + 1, 0, 255).astype(np.uint8)
    same, other = Looks.of(np.concatenate([one, near])), Looks.of(noise(24, 96, 1)[None, None])
    near_bits, far_bits = (int(same.hashes[0] ^ bits).bit_count() for bits in (same.hashes[1], other.hashes[0]))
    assert near_bits <= 3 < far_bits
    assert same.coarse.shape == (2, 64)


def test_resizing_to_height_and_width_is_pillows() -> None:
    images = np.stack([noise(60, 90, 1), noise(60, 90, 2)])[:, None]
    found = resized(images, (20, 45))
    wanted = np.asarray(Image.fromarray(images[1, 0]).resize((45, 20), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(found[1, 0], wanted)


def test_the_header_of_a_model_tells_both_sides_of_the_data() -> None:
    class Model:
        size = 32
        header: dict[str, object]

    model = Model()
    for told, found in ([500, 2000], (500, 2000)), (64, 64):
        model.header = {"data_size": told}
        assert stored_size(model) == found
    for wrong in ([0, 5], "64", [4096, 4096], [1]):
        model.header = {"data_size": wrong}
        with pytest.raises(ModelError, match="pixels a side; train it again"):
            stored_size(model)


def test_five_images_are_enough_for_five_splits_and_four_are_not(tmp_path: Path, make_params: MakeParams) -> None:
    folder_of(tmp_path, [(32, 32)] * 5)
    params = make_params(source="folder", address="images", size=32)
    fetch(params, tmp_path)
    prepare(params, tmp_path)
    assert set(read_info(tmp_path / "data/prepared").counts.values()) == {1}
    (tmp_path / "images/004.png").unlink()
    fetch(params, tmp_path)
    with pytest.raises(DataError, match=r"4 usable images .* are too few: none is left for train; add images"):
        prepare(params, tmp_path)
