"""A file by a density whose values come in an order of its own is as long as computed and comes back byte for byte."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from densitywatch.errors import DataError, ModelError
from densitywatch.evaluation.coding.image_code import decode_images, encode_images, read_code
from densitywatch.evaluation.coding.range_code import PARTS, decode_walk, encode_walk, probabilities
from densitywatch.evaluation.measures.code_length import decode_elsewhere
from densitywatch.models.storage import load_model_folder
from tests.evaluation.coding.test_image_code import make_model, random_images

PYRAMID = {"coarsest": 4, "coarse_channels": 4, "coarse_dilations": [1], "context_channels": 4, "channels": 4}


@pytest.mark.parametrize("channels", [1, 3])
def test_images_come_back_byte_for_byte(tmp_path: Path, channels: int) -> None:
    folder = make_model(tmp_path / "model", "pixelcnn_pyramid", PYRAMID, channels=channels)
    for n in (1, 3):
        images = random_images(n, channels)
        (tmp_path / "file").write_bytes(encode_images(folder, images).to_bytes())
        assert np.array_equal(decode_images(folder, read_code(tmp_path / "file")), images)


@pytest.mark.parametrize("values", [256, 511])
def test_probabilities_are_whole_parts_that_sum_to_one_and_none_is_zero(values: int) -> None:
    cumulated = torch.rand(50, values - 1, dtype=torch.float64).sort(1).values
    cumulated[0], cumulated[1] = 0.0, 1.0
    cumulated[2, 100] = cumulated[2, 101] + 1e-16  # a rounding error in the order
    table = probabilities(cumulated)
    parts = table * PARTS
    assert (parts == parts.round()).all()
    assert parts.min() >= 1
    assert (table.sum(1) == 1.0).all()


def test_images_of_any_size_take_as_many_bits_as_computed(tmp_path: Path) -> None:
    model: Any = load_model_folder(make_model(tmp_path, "pixelcnn_pyramid", PYRAMID, channels=3)).double()
    x = torch.from_numpy(np.random.default_rng(0).integers(100, 130, (2, 3, 37, 22), dtype=np.uint8))
    words = encode_walk(model, x)
    assert torch.equal(decode_walk(model, 2, 37, 22, words), x)
    with torch.no_grad():
        bits = -model.log_prob(x).sum().item() / math.log(2)
    assert 32 * len(words) == pytest.approx(bits, rel=0.005)


def test_images_of_another_size_and_a_model_that_did_not_code_are_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "pixelcnn_pyramid", PYRAMID)
    with pytest.raises(ModelError, match=r"codes 1 x 8 x 8 images, not \(1, 16, 16\)"):
        encode_images(folder, random_images(1, size=16))
    code = encode_images(folder, random_images(1))
    with pytest.raises(ModelError, match="is not the model that these images were coded with"):
        decode_images(folder, dataclasses.replace(code, model=b"0" * 16))
    with pytest.raises(DataError, match="the decoded images are not the ones that were coded"):
        decode_images(folder, dataclasses.replace(code, images=b"0" * 16))


@pytest.mark.slow
def test_another_process_decodes_a_file_and_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "pixelcnn_pyramid", PYRAMID, channels=3, size=16)
    images = random_images(2, 3, 16)
    file, out = tmp_path / "images.dwcode", tmp_path / "decoded.npy"
    file.write_bytes(encode_images(folder, images).to_bytes())
    decode_elsewhere(file, folder, out)
    assert np.load(out).tobytes() == images.tobytes()
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"decoding in another process failed: .*cut short"):
        decode_elsewhere(file, folder, out)
