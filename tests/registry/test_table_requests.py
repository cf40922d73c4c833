"""Tables sent to a served model: one column of images in base64, and what would fill the memory is refused."""

from __future__ import annotations

import io
import json
import resource
import time
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow.exceptions import MlflowException

from densitywatch.errors import DataError
from densitywatch.registry.service import MAX_IMAGES, MAX_REQUEST, Service
from densitywatch.registry.table_requests import PARQUET, texts_of_csv, texts_of_parquet
from tests.registry.registry_project import base64_png, images


def parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


def read(data: bytes) -> list[str]:
    return texts_of_parquet(data, MAX_IMAGES, MAX_REQUEST)


@pytest.fixture
def served(service: Service) -> Any:
    """What MLflow's server asks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Any type hint is inferred")  # MLflow says it of its own types
        from densitywatch.registry.serving import Served

    found = Served()
    found.service = service
    return found


def test_both_kinds_of_table_get_the_answers_that_json_gets(service: Service, served: Any) -> None:
    served.service = service
    x = images(3, 30)
    files = [base64_png(image[0]) for image in x]
    files[1] = f"data:image/png;base64,{files[1]}"
    table = pd.DataFrame({"image": files})
    packed = io.BytesIO()
    table.to_parquet(packed)
    expected = [pytest.approx(row, rel=1e-5) for row in service.answer(x)]
    for kind, body in (
        ("text/csv; charset=utf-8", table.to_csv(index=False).encode()),
        (PARQUET, packed.getvalue()),
    ):
        answer = served.invocations(body, kind, None, None)
        assert json.loads(answer.response)["predictions"] == expected
    with pytest.raises(MlflowException, match="cannot be read as text/html; send JSON"):
        served.invocations(b"<p>", "text/html", None, None)


def test_parquet_that_unpacks_to_gigabytes_is_refused_and_takes_little_memory() -> None:
    text = pa.array(["A" * (1 << 20)]).dictionary_encode()
    bomb = parquet(pa.table({"image": text.take(pa.array(np.zeros(1000, np.int64)))}))
    assert len(bomb) < 1000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="more than 32 MiB of text"):
        read(bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (pa.table({"picture": ["x"]}), "one column, called image"),
        (pa.table({"image": ["x"], "more": [1]}), "one column, called image"),
        (pa.table({"image": ["x"] * (MAX_IMAGES + 1)}), "1025 images are more than the 1024"),
        (pa.table({"image": [1.5]}), "of the type double and not text"),
        (pa.table({"image": ["x", None]}), "a cell of the column image is empty"),
    ],
)
def test_a_parquet_table_of_another_form_is_refused_with_a_sentence(table: pa.Table, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read(parquet(table))


def test_a_csv_of_millions_of_columns_is_refused_at_once() -> None:
    began = time.process_time()
    with pytest.raises(DataError, match="one column, called image"):
        texts_of_csv(b"," * MAX_REQUEST, MAX_IMAGES)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "one column, called image"),
        (b"a\nx\n", "one column, called image"),
        (b"image,more\nx,y\n", "one column, called image"),
        (b"image\n" + b"x\n" * (MAX_IMAGES + 1), "more than the 1024 images"),
        (b'image\n"x' + b"\xff", "cannot be read as text/csv"),
    ],
)
def test_a_csv_of_another_form_is_refused_with_a_sentence(body: bytes, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        texts_of_csv(body, MAX_IMAGES)
    assert texts_of_csv(b"image\r\nx\r\n\r\n", MAX_IMAGES) == ["x"]
