"""Images coded with a model come back byte for byte; a file that is not right is refused in one sentence."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from densitywatch.errors import DataError, ModelError
from densitywatch.evaluation.coding.image_code import (
    HEADER,
    Code,
    decode_images,
    encode_images,
    main,
    read_code,
)
from densitywatch.evaluation.measures.code_length import decode_elsewhere
from densitywatch.models.storage import build_model, save_model
from densitywatch.params import ModelBlock, TrainingParams

TRAINING = TrainingParams(steps=1, batch_size=1, learning_rate=1e-3)
RNN = {"channels": 4, "layers": 1}


def make_model(
    folder: Path, kind: str, settings: dict[str, Any], *, channels: int = 1, size: int = 8, classes: int = 10
) -> Path:
    torch.manual_seed(4)
    block = ModelBlock(kind=kind, settings=settings, training=TRAINING)
    names = tuple(f"class {number}" for number in range(classes))
    model = build_model(block, channels=channels, size=size, classes=len(names))
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    save_model(model, folder, kind=kind, class_names=names, about={})
    return folder


def random_images(n: int, channels: int = 1, size: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, channels, size, size), dtype=np.uint8)


@pytest.mark.parametrize(
    ("kind", "settings", "channels"),
    [
        ("pixelcnn", {"channels": 4, "dilations": [1, 2], "head": "softmax"}, 3),
        ("pixelrnn", {**RNN, "recurrence": "row_lstm"}, 1),
        ("pixelrnn", {**RNN, "recurrence": "diagonal_bilstm", "head": "logistic_mixture"}, 3),
        ("vae", {"channels": 4, "latent": 3, "head": "softmax"}, 3),
    ],
)
def test_every_kind_and_colour_images_come_back_byte_for_byte(
    kind: str, settings: dict[str, Any], channels: int, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "model", kind, settings, channels=channels)
    for n in (1, 19):
        images = random_images(n, channels)
        (tmp_path / "file").write_bytes(encode_images(folder, images).to_bytes())
        assert np.array_equal(decode_images(folder, read_code(tmp_path / "file")), images)


@pytest.fixture
def coded(tmp_path: Path) -> tuple[Path, Path]:
    folder = make_model(tmp_path / "model", "pixelcnn", {"channels": 4, "dilations": [1]})
    file = tmp_path / "images.dwcode"
    file.write_bytes(encode_images(folder, random_images(3)).to_bytes())
    return folder, file


@pytest.mark.parametrize("where", [0, 10, 30, 50, 62, 90, -1])
def test_a_file_with_one_altered_byte_is_refused_and_nothing_is_written(
    where: int, coded: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, file = coded
    data = bytearray(file.read_bytes())
    data[where] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises((DataError, ModelError)):
        main(str(file), str(folder), str(tmp_path / "out.npy"))
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize("keep", [0, 7, 40, 79, 80, -1, -4])
def test_a_file_cut_short_is_refused(keep: int, coded: tuple[Path, Path]) -> None:
    folder, file = coded
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"cut short|not a file of coded images"):
        decode_images(folder, read_code(file))


def test_a_file_that_is_something_else_or_missing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    with pytest.raises(DataError, match="not a file of coded images"):
        read_code(tmp_path / "x")
    with pytest.raises(DataError, match="cannot be read"):
        read_code(tmp_path / "y")


@pytest.mark.slow
def test_another_model_than_the_coder_is_refused_by_the_decoding_process(
    coded: tuple[Path, Path], tmp_path: Path
) -> None:
    other = make_model(tmp_path / "other", "pixelcnn", {"channels": 5, "dilations": [1]})
    with pytest.raises(DataError, match=r"decoding in another process failed: .*not the model that these images"):
        decode_elsewhere(coded[1], other, tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()


def test_a_payload_that_decodes_to_other_images_is_refused(coded: tuple[Path, Path]) -> None:
    folder, file = coded
    code = read_code(file)
    with pytest.raises(DataError, match="not the ones that were coded"):
        decode_images(folder, dataclasses.replace(code, words=code.words[::-1].copy()))


def test_images_of_another_size_are_refused_with_both_sizes(coded: tuple[Path, Path]) -> None:
    folder, file = coded
    with pytest.raises(ModelError, match="codes 1 x 8 x 8 images"):
        encode_images(folder, random_images(2, 3, 8))
    code = read_code(file)
    with pytest.raises(ModelError, match="the file has 1 x 9 x 9"):
        decode_images(folder, dataclasses.replace(code, shape=(3, 1, 9)))


def test_a_model_without_a_likelihood_is_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "autoencoder", {})
    with pytest.raises(ModelError, match="has no likelihood to code with"):
        encode_images(folder, random_images(2))


def test_a_conditional_model_without_labels_is_refused(tmp_path: Path) -> None:
    settings = {"channels": 4, "dilations": [1], "conditional": True}
    folder = make_model(tmp_path / "model", "pixelcnn", settings)
    with pytest.raises(ModelError, match="codes only labelled images"):
        encode_images(folder, random_images(2))


def test_a_conditional_model_made_without_labels_codes_images_without(tmp_path: Path) -> None:
    settings = {"channels": 4, "dilations": [1], "conditional": True}
    folder = make_model(tmp_path / "model", "pixelcnn", settings, classes=0)
    images = random_images(2)
    code = encode_images(folder, images)
    assert code.labels is None
    assert np.array_equal(decode_images(folder, code), images)


def test_labels_travel_in_the_file(tmp_path: Path) -> None:
    settings = {"channels": 4, "dilations": [1], "conditional": True}
    folder = make_model(tmp_path / "model", "pixelcnn", settings)
    images, labels = random_images(3), np.array([3, 0, 9])
    code: Code = encode_images(folder, images, labels)
    (tmp_path / "file").write_bytes(code.to_bytes())
    read = read_code(tmp_path / "file")
    assert json.dumps(np.asarray(read.labels).tolist()) == "[3, 0, 9]"
    assert np.array_equal(decode_images(folder, read), images)


def test_labels_above_255_travel_in_the_file_and_files_without_them_stay_as_they_were(tmp_path: Path) -> None:
    settings = {"channels": 4, "dilations": [1], "conditional": True}
    folder = make_model(tmp_path / "model", "pixelcnn", settings, classes=301)
    images = random_images(3)
    for labels, magic in ([300, 44, 256], b"dwcode2\n"), ([255, 44, 0], b"dwcode1\n"):
        (tmp_path / "file").write_bytes(encode_images(folder, images, np.array(labels)).to_bytes())
        assert (tmp_path / "file").read_bytes().startswith(magic)
        read = read_code(tmp_path / "file")
        assert np.asarray(read.labels).tolist() == labels
        assert np.array_equal(decode_images(folder, read), images)


def test_labels_of_one_byte_are_not_read_as_wide_ones(tmp_path: Path) -> None:
    labels = np.array([3, 0, 9, 1])
    code = Code(bytes(16), bytes(16), (4, 1, 8), labels, np.zeros(1, np.uint32)).to_bytes()
    header, rest = code[: HEADER.size], code[HEADER.size :]
    assert header.startswith(b"dwcode1\n")
    assert rest == bytes([3, 0, 9, 1]) + bytes(4)
    (tmp_path / "file").write_bytes(b"dwcode2\n" + code[8:])
    with pytest.raises(DataError, match="was changed or cut short"):
        read_code(tmp_path / "file")
