"""What a served model answers, without HTTP."""

from __future__ import annotations

import base64
import io
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from densitywatch.errors import DataError
from densitywatch.models.storage import load_model_folder
from densitywatch.registry.service import MAX_IMAGES, Service, answers_of, read_json
from tests.registry.registry_project import SIZE, base64_png, images, write_model

BLACK = base64_png(np.zeros((8, 8), np.uint8))


def test_arrays_and_image_files_get_the_same_exact_bits_and_conformal_p_values(service: Service, packed: Path) -> None:
    x = images(5, 20)
    answers = service.answer(x.tolist())
    assert service.answer(x[:, 0].tolist()) == answers
    assert service.answer([base64_png(image[0]) for image in x]) == answers
    assert service.answer(["data:image/png;base64," + base64_png(image[0]) for image in x]) == answers
    with torch.no_grad():
        nll = -load_model_folder(packed).log_prob(torch.from_numpy(x)).double().numpy()
    assert [answer["bits_per_dim"] for answer in answers] == pytest.approx(nll / (math.log(2) * SIZE * SIZE))
    calibration = service.calibration
    assert calibration is not None
    by_hand = [(1 + (calibration >= value).sum()) / (len(calibration) + 1) for value in nll]
    assert [answer["p_value"] for answer in answers] == pytest.approx(by_hand)


def test_a_foreign_image_has_the_smallest_p_value(service: Service) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 1, SIZE, SIZE))
    assert service.answer(noise)[0]["p_value"] == pytest.approx(1 / 100)


def test_without_calibration_the_p_value_is_null_and_not_a_guess(calibrated: Path, tmp_path: Path) -> None:
    shutil.copytree(calibrated / "models" / "pixelcnn", tmp_path / "model")
    answer = Service(tmp_path / "model", "crop").answer(images(1, 0))[0]
    assert answer["p_value"] is None
    assert answer["bits_per_dim"] > 0


def nested(depth: int) -> Any:
    inner: Any = 1
    for _ in range(depth):
        inner = [inner]
    return inner


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ([], "there is no image"),
        ("text", "send a list of images"),
        (3, "send a list of images"),
        ({"pixels": [1]}, "not as an object with the keys pixels"),
        ([[[1, 2], [3, 4]]], "images have the shape [1, 2, 2] where the model takes [1, 8, 8]"),
        ([[[1, 2], [3]]], "not all of one shape"),
        (np.full((1, 8, 8), 256), "whole numbers from 0 to 255"),
        (np.full((1, 8, 8), -1), "whole numbers from 0 to 255"),
        (np.full((1, 8, 8), 0.5), "whole numbers from 0 to 255"),
        (np.full((1, 8, 8), np.nan), "whole numbers from 0 to 255"),
        (np.ones((1, 8, 8), dtype=bool), "whole numbers from 0 to 255"),
        (np.zeros((MAX_IMAGES + 1, 8, 8), dtype=np.uint8), "more than the 1024 of one request"),
        (["%%%"], "image 0 is not base64"),
        (
            [base64_png(np.zeros((8, 8), np.uint8)), base64.b64encode(b"<svg/>").decode()],
            "image 1: text such as HTML or SVG",
        ),
        ([base64_png(np.zeros((8, 8), np.uint8))[:40]], "image 0: "),
        ([base64_png(np.zeros((8, 8), np.uint8)), [[0]]], "send arrays or base64, not both"),
        ({"samples": 0}, "samples must be a whole number from 1 to 64"),
        ({"samples": 2.5}, "samples must be a whole number"),
        ({"samples": 2, "seed": -1}, "seed must be a whole number"),
        ({"samples": 2, "sede": 1}, "'sede': unknown key"),
        ({"samples": 2, "label": "cat"}, "this model knows no labels"),
        (None, "send a list of images"),
        ([None], "neither of nested arrays of 0 to 255, or image files in base64"),
        ([[1, None]], "neither of nested arrays"),
        ([[["abc"]]], "neither of nested arrays"),
        ([["abc", [1]]], "not all of one shape"),
        ([[["abc" * 9_000_000] + ["a"] * 100_000]], "neither of nested arrays"),
        ([{"a": 1}], "neither of nested arrays"),
        ([b"\xff\xfe"], "neither of nested arrays"),
        ([True], "neither of nested arrays"),
        ([10**400], "whole numbers from 0 to 255"),
        ([nested(900)], "not all of one shape"),
        ([[]], "images have the shape [0] where the model takes [1, 8, 8]"),
        ([1, 2, 3], "images have the shape [] where the model takes [1, 8, 8]"),
        (["A" * ((32 << 20) + 4)], "the request has 32 MiB, more than the 32 of one request; send fewer images"),
        (["é"], "image 0 is not base64"),
        (["data:image/png;base64,"], "image 0: "),
        ([base64.b64encode(b"\0\xff" * 5000).decode()], "image 0: not an image in a known format"),
        ({"samples": None}, "samples must be a whole number"),
        ({"samples": [[1], [2, 3]]}, "samples must be a whole number"),
        ({"samples": True}, "samples must be a whole number"),
        ({"samples": 10**30}, "samples must be a whole number"),
        ({"samples": {"a": 1}}, "samples must be a whole number"),
        ({"samples": 1, "seed": "x"}, "seed must be a whole number"),
    ],
)
def test_wrong_input_is_one_sentence(service: Service, request_: Any, sentence: str) -> None:
    with pytest.raises(DataError, match=re.escape(sentence)) as caught:
        service.answer(request_)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"no json", "is no JSON"),
        (b"\xff\xfe\x00", "is no JSON"),
        (b"[" * 200_000, "is no JSON"),
        (b"[1]", "must be an object with one of the keys inputs, instances"),
        (b'{"inputs": [], "instances": []}', "must be an object with one of the keys"),
        (b'{"dataframe_split": [1]}', "needs data, a list of rows"),
        (b'{"dataframe_split": {"data": [1]}}', "needs data, a list of rows"),
        (b'{"dataframe_split": {"data": [[1, 2]]}}', "one column, called image"),
        (b'{"dataframe_split": {"columns": {"a": 1}, "data": [[1]]}}', "one column, called image"),
        (b'{"dataframe_records": {"image": 1}}', "one column, called image"),
        (b'{"dataframe_records": [{"a": 1}, 3]}', "one column, called image"),
    ],
)
def test_a_body_that_is_no_request_is_one_sentence(body: bytes, sentence: str) -> None:
    with pytest.raises(DataError, match=re.escape(sentence)):
        read_json(body)


def test_samples_are_pngs_that_the_seed_decides(service: Service) -> None:
    answers = service.answer({"samples": 2, "seed": 3})
    assert answers == service.answer({"samples": np.array(2), "seed": np.array(3)})
    assert answers != service.answer({"samples": 2, "seed": 4})
    assert Image.open(io.BytesIO(base64.b64decode(answers[0]["image"]))).size == (SIZE, SIZE)


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("vae", {"elbo_bits_per_dim", "reconstruction_mse"}),
        ("autoencoder", {"reconstruction_mse"}),
        ("gan", {"image"}),
    ],
)
def test_models_without_a_density_answer_with_what_they_have(calibrated: Path, kind: str, keys: set[str]) -> None:
    service = Service(write_model(calibrated, f"served_{kind}", kind=kind), "crop")
    assert set(answers_of(service.model)) == keys
    if keys == {"image"}:
        assert set(service.answer({"samples": 1})[0]) == keys
        with pytest.raises(DataError, match="it draws them"):
            service.answer(images(1, 0))
    else:
        answer = service.answer(images(2, 0))
        assert set(answer[0]) == keys
        assert answer == service.answer(images(2, 0))


def test_the_served_detector_answers_score_p_value_and_outlier(calibrated: Path) -> None:
    service = Service(calibrated / "models" / "detector", "crop")
    noise = np.random.default_rng(0).integers(0, 256, (1, 1, SIZE, SIZE))
    normal, foreign = service.answer(np.concatenate([images(1, 0), noise]))
    assert set(normal) == set(answers_of(None))
    assert foreign["score"] > normal["score"]
    assert foreign["p_value"] == pytest.approx(1 / 100)
    assert foreign["outlier"] is True
