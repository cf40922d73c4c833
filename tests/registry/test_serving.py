"""What a served model answers, over real HTTP with `mlflow models serve` and, faster, without it."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
import safetensors.numpy
import torch
from PIL import Image

from densitywatch.detector import detector
from densitywatch.errors import DataError, ModelError
from densitywatch.models.storage import load_model_folder
from densitywatch.registry import versions as registry
from densitywatch.registry.service import MAX_IMAGES, MAX_REQUEST, Service, answers_of, read_json
from densitywatch.registry.version_files import CALIBRATION
from densitywatch.tracking import runs as tracking
from tests.marks import marks
from tests.registry.registry_project import SIZE, images, tiny_params, write_data, write_model


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a trained pixelcnn and a calibrated detector."""
    root = tmp_path_factory.mktemp("project")
    write_data(root)
    write_model(root, "pixelcnn", steps=40)
    detector.calibrate(tiny_params(), root)
    return root


@pytest.fixture(scope="module")
def packed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from densitywatch.registry.version_files import pack_model

    folder = tmp_path_factory.mktemp("packed")
    pack_model("pixelcnn", root, folder)
    return folder


@pytest.fixture(scope="module")
def service(packed: Path) -> Service:
    return Service(packed, "crop")


def png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_arrays_and_image_files_get_the_same_exact_bits_and_conformal_p_values(service: Service, packed: Path) -> None:
    x = images(5, 20)
    answers = service.answer(x.tolist())
    assert service.answer(x[:, 0].tolist()) == answers
    assert service.answer([png(image[0]) for image in x]) == answers
    assert service.answer(["data:image/png;base64," + png(image[0]) for image in x]) == answers
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


def test_without_calibration_the_p_value_is_null_and_not_a_guess(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "models" / "pixelcnn", tmp_path / "model")
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
        ([png(np.zeros((8, 8), np.uint8)), base64.b64encode(b"<svg/>").decode()], "image 1: text such as HTML or SVG"),
        ([png(np.zeros((8, 8), np.uint8))[:40]], "image 0: "),
        ([png(np.zeros((8, 8), np.uint8)), [[0]]], "send arrays or base64, not both"),
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
    ("tensors", "sentence"),
    [
        ({"nll": np.zeros((3, 3))}, "has no scores of calibration images"),
        ({"nll": np.zeros(3, dtype=np.int64)}, "has no scores of calibration images"),
        ({"other": np.zeros(3)}, "has no scores of calibration images"),
        ({"nll": np.array([1.0, math.nan])}, "no finite numbers"),
        ({"nll": np.array([2.0, 1.0])}, "not the sorted scores"),
        (None, "not a whole safetensors file"),
    ],
)
def test_a_calibration_that_is_none_is_refused_by_name(
    packed: Path, tmp_path: Path, tensors: dict[str, np.ndarray] | None, sentence: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(packed, folder)
    (folder / CALIBRATION).write_bytes(b"\x10\0")
    if tensors is not None:
        safetensors.numpy.save_file(tensors, folder / CALIBRATION)
    with pytest.raises(ModelError, match=sentence):
        Service(folder, "crop")


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("vae", {"elbo_bits_per_dim", "reconstruction_mse"}),
        ("autoencoder", {"reconstruction_mse"}),
        ("gan", {"image"}),
    ],
)
def test_models_without_a_density_answer_with_what_they_have(root: Path, kind: str, keys: set[str]) -> None:
    service = Service(write_model(root, f"served_{kind}", kind=kind), "crop")
    assert set(answers_of(service.model)) == keys
    if keys == {"image"}:
        assert set(service.answer({"samples": 1})[0]) == keys
        with pytest.raises(DataError, match="it draws them"):
            service.answer(images(1, 0))
    else:
        answer = service.answer(images(2, 0))
        assert set(answer[0]) == keys
        assert answer == service.answer(images(2, 0))


def test_the_served_detector_answers_score_p_value_and_outlier(root: Path) -> None:
    service = Service(root / "models" / "detector", "crop")
    noise = np.random.default_rng(0).integers(0, 256, (1, 1, SIZE, SIZE))
    normal, foreign = service.answer(np.concatenate([images(1, 0), noise]))
    assert set(normal) == set(answers_of(None))
    assert foreign["score"] > normal["score"]
    assert foreign["p_value"] == pytest.approx(1 / 100)
    assert foreign["outlier"] is True


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
@marks("server")
def address(root: Path) -> Iterator[str]:
    """`mlflow models serve` of the champion on a free port, as a user starts it."""
    params = tiny_params()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        registry.register("pixelcnn", params, root)
        assert registry.promote("pixelcnn", params, root).passed
        uri = tracking.tracking_uri(params, root)
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/densitywatch-pixelcnn@champion"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # MLflow starts uvicorn by its name
    log = root / "serve.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [*command, "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)],
            env={
                **os.environ,
                "PATH": path,
                "MLFLOW_TRACKING_URI": uri,
                "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            },
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", server, log)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, 15)
        server.wait(30)


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.3)
    raise AssertionError(f"the server did not start: {log.read_text()}")


def post(address: str, body: Any, kind: str = "application/json") -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_the_champion_answers_real_requests(address: str, service: Service) -> None:
    x = images(3, 30)
    expected = [{key: pytest.approx(value, rel=1e-5) for key, value in row.items()} for row in service.answer(x)]
    files = [png(image[0]) for image in x]
    for body in (
        {"inputs": x.tolist()},
        {"inputs": files},
        {"instances": x.tolist()},
        {"dataframe_split": {"columns": ["image"], "data": [[file] for file in files]}},
        {"dataframe_records": [{"image": image.tolist()} for image in x]},
    ):
        assert post(address, body) == (200, {"predictions": expected})


def test_samples_come_over_http_as_well(address: str) -> None:
    status, answer = post(address, {"inputs": {"samples": 2, "seed": 1}})
    assert status == 200
    assert len(answer["predictions"]) == 2


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"inputs": [[[1, 2], [3, 4]]]}, "images have the shape [1, 2, 2] where the model takes [1, 8, 8]"),
        ({"inputs": ["x" * 200_000 + "%"]}, "image 0 is not base64"),
        ({"inputs": []}, "there is no image in the request"),
        ({"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2]]}}, "a table needs one column, called image"),
    ],
)
def test_wrong_input_gets_a_400_with_one_sentence(address: str, body: Any, sentence: str) -> None:
    status, answer = post(address, body)
    assert status == 400
    assert answer == {"error_code": "INVALID_PARAMETER_VALUE", "message": sentence}


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"no json", 'the request is no JSON; send {"inputs": [...]}'),
        (b'{"images": []}', "the request must be an object with one of the keys inputs, instances"),
        (b"[1]", "the request must be an object with one of the keys inputs, instances"),
        (b'{"inputs": [[1, 2], [3]]}', "the images are not all of one shape"),
        (b'{"instances": [["iVBOR", [1]]]}', "the images are not all of one shape"),
        (b'{"instances": [{"b64": "aGVsbG8="}]}', "an image is neither of nested arrays"),
        (b'{"inputs": null}', "send a list of images"),
        (b'{"inputs": [null]}', "an image is neither of nested arrays"),
        (b'{"inputs": {"samples": [[1], [2, 3]]}}', "samples must be a whole number"),
        (b"[" * 100_000, "the request is no JSON"),
    ],
)
def test_crafted_requests_get_one_sentence_and_nothing_of_the_programs_inside(
    address: str, body: bytes, sentence: str
) -> None:
    status, answer = post(address, body)
    assert status == 400
    assert answer["message"].startswith(sentence)
    assert set(answer) == {"error_code", "message"}
    assert len(answer["message"]) < 400


@pytest.mark.parametrize("kind", ["text/csv", "application/vnd.apache.parquet"])
def test_tables_that_cannot_be_read_get_one_sentence_too(address: str, kind: str) -> None:
    status, answer = post(address, b'\xff\xfe"rubbish', kind)
    assert (status, answer["message"]) == (400, f"the request cannot be read as {kind}; send JSON")


def test_a_request_that_is_too_large_is_counted_and_not_decoded(address: str) -> None:
    server = server_of(address)
    before = peak(server)
    status, answer = post(address, b'{"inputs": ["' + b"A" * (100 << 20) + b'"]}')
    assert status == 400
    assert answer["message"] == "the request has 100 MiB, more than the 32 of one request; send fewer images at once"
    assert peak(server) - before < 320 << 20, "the body itself, twice, and no more"
    assert MAX_REQUEST == 32 << 20


def server_of(address: str) -> psutil.Process:
    """The process that listens at the address."""
    port = urlsplit(address).port
    links = psutil.net_connections("tcp")
    return psutil.Process(next(link.pid for link in links if link.status == "LISTEN" and link.laddr.port == port))


def peak(process: psutil.Process) -> int:
    """The most memory that the process has had so far, in bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) << 10
