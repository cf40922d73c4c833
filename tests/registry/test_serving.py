"""What a served model answers over real HTTP, with `mlflow models serve`."""

from __future__ import annotations

import json
import os
import re
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

import psutil
import pytest

from densitywatch.registry import versions as registry
from densitywatch.registry.service import MAX_REQUEST, Service
from densitywatch.tracking import runs as tracking
from tests.marks import marks
from tests.registry.registry_project import base64_png, images, tiny_params


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
@marks("server")
def address(calibrated: Path) -> Iterator[str]:
    """`mlflow models serve` of the champion on a free port, as a user starts it."""
    params = tiny_params()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        registry.register("pixelcnn", params, calibrated)
        assert registry.promote("pixelcnn", params, calibrated).passed
        uri = tracking.tracking_uri(params, calibrated)
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/densitywatch-pixelcnn@champion"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # MLflow starts uvicorn by its name
    log = calibrated / "serve.log"
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
    files = [base64_png(image[0]) for image in x]
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
