"""A registered model behind MLflow's scoring server (models from code: MLflow runs this file to load a version).

    mlflow models serve -m models:/densitywatch-pixelcnn@champion --env-manager local --host 127.0.0.1

answers POST /invocations, JSON `{"inputs": [...]}`, with `{"predictions": [...]}`; see service.py for both. A request
that cannot be answered gets a 400 with one sentence. MLflow's server would first turn any JSON into tables or arrays,
at ten times its size, and answer a failure with a stack trace. So the size is checked and the request is read here;
tables, CSV or Parquet, are read by table_requests.py.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.pyfunc import scoring_server
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from densitywatch.errors import DataError, DensitywatchError
from densitywatch.models.header import shown
from densitywatch.registry.service import MAX_IMAGES, MAX_REQUEST, Answer, Service, read_json, too_large
from densitywatch.registry.table_requests import texts_of_csv, texts_of_parquet

log = logging.getLogger(__name__)


class BadRequest(MlflowException):
    """A 400. MLflow's server repeats the whole request in its message; this one answers with the sentence alone."""

    def __init__(self, sentence: str, error_code: int = INVALID_PARAMETER_VALUE) -> None:
        super().__init__(sentence, error_code=error_code)
        self.sentence = sentence

    def serialize_as_json(self) -> str:
        return json.dumps({"error_code": self.error_code, "message": self.sentence})


class Served(PythonModel):
    """One version, loaded once."""

    def load_context(self, context: PythonModelContext) -> None:
        self.service = Service(Path(context.artifacts["model"]), context.model_config["resize"])
        if scoring_server._SERVER_MODEL_PATH in os.environ:  # this process is MLflow's server of this model
            scoring_server.invocations = self.invocations

    def predict(
        self,
        context: PythonModelContext | None,
        model_input: np.ndarray,  # the one type that MLflow passes on unchanged; other types come as well
        params: dict[str, Any] | None = None,
    ) -> list[Answer]:
        """The answers to the images, or the samples, that were asked for. Raises BadRequest."""
        request: Any = model_input
        try:
            if isinstance(request, pd.DataFrame):  # CSV and Parquet come as a table
                if list(request.columns) not in (["image"], [0]):
                    raise DataError("a table needs one column, called image")
                request = request.iloc[:, 0].tolist()
            return self.service.answer(request)
        except DataError as error:
            raise BadRequest(str(error)) from None
        except Exception as error:
            log.exception("a request could not be answered")
            own = str(error) if isinstance(error, DensitywatchError) else "the server's log says why"
            raise BadRequest(f"the request could not be answered: {own}", INTERNAL_ERROR) from None

    def invocations(self, data: bytes, content_type: str | None, model: Any, input_schema: Any) -> Any:
        """Takes the place of MLflow's handler of a request's body. Raises BadRequest."""
        if len(data) > MAX_REQUEST:
            raise BadRequest(too_large(len(data)))
        kind = (content_type or "").partition(";")[0].strip().lower()
        try:
            if kind == scoring_server.CONTENT_TYPE_JSON:
                request = read_json(data)
            elif kind == scoring_server.CONTENT_TYPE_CSV:
                request = texts_of_csv(data, MAX_IMAGES)
            elif kind == scoring_server.CONTENT_TYPE_PARQUET:
                request = texts_of_parquet(data, MAX_IMAGES, MAX_REQUEST)
            else:
                raise DataError(f"the request cannot be read as {shown(kind)[:50]}; send JSON")
        except DataError as error:
            raise BadRequest(str(error)) from None
        answers = json.dumps({"predictions": self.predict(None, request)})
        return scoring_server.InvocationsResponse(answers, 200, scoring_server.CONTENT_TYPE_JSON)


set_model(Served())
