"""A registered model behind MLflow's scoring server (models from code: MLflow runs this file to load a version).

    mlflow models serve -m models:/densitywatch-pixelcnn@champion --env-manager local --host 127.0.0.1

answers POST /invocations, JSON `{"inputs": [...]}`, with `{"predictions": [...]}`; see answers.py for both. A request
that cannot be answered gets a 400 with one sentence. MLflow's server would turn any JSON into tables or arrays first,
at ten times its size, and answer with the stack of what fails there; so requests are counted and read here.
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

from densitywatch.answers import MAX_REQUEST, Answer, Service, read_json, too_large
from densitywatch.errors import DataError, DensitywatchError

log = logging.getLogger(__name__)
mlflows_own: Any = scoring_server.invocations


class BadRequest(MlflowException):
    """A 400. MLflow's server puts the whole request before the message of an exception; this one answers without it."""

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
        model_input: np.ndarray,  # the very type that MLflow leaves alone; others come as well
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
        """What MLflow's server does with the body of a request. Raises BadRequest."""
        if len(data) > MAX_REQUEST:
            raise BadRequest(too_large(len(data)))
        kind = (content_type or "").partition(";")[0].strip().lower()
        if kind != scoring_server.CONTENT_TYPE_JSON:
            try:
                return mlflows_own(data, content_type or "", model, input_schema)
            except BadRequest:
                raise
            except Exception:  # whatever MLflow's readers raise: the log keeps it, the caller gets one sentence
                log.exception("a request of the type %.50r could not be read", kind)
                raise BadRequest(f"the request cannot be read as {kind[:50]}; send JSON") from None
        try:
            request = read_json(data)
        except DataError as error:
            raise BadRequest(str(error)) from None
        answers = json.dumps({"predictions": self.predict(None, request)})
        return scoring_server.InvocationsResponse(answers, 200, scoring_server.CONTENT_TYPE_JSON)


set_model(Served())
