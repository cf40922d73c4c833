"""A registered model behind MLflow's scoring server (models from code: MLflow runs this file to load a version).

    mlflow models serve -m models:/densitywatch-pixelcnn@champion --env-manager local --host 127.0.0.1

answers POST /invocations, JSON `{"inputs": [...]}`, with `{"predictions": [...]}`; see answers.py for both. A request
that cannot be answered gets a 400 with one sentence.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from densitywatch.answers import Answer, Service
from densitywatch.errors import DataError


class BadRequest(MlflowException):
    """A 400. MLflow's server puts the whole request before the message of an exception; this one answers without it."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, error_code=INVALID_PARAMETER_VALUE)
        self.sentence = sentence

    def serialize_as_json(self) -> str:
        return json.dumps({"error_code": self.error_code, "message": self.sentence})


class Served(PythonModel):
    """One version, loaded once."""

    def load_context(self, context: PythonModelContext) -> None:
        self.service = Service(Path(context.artifacts["model"]), context.model_config["resize"])

    def predict(
        self,
        context: PythonModelContext,
        model_input: np.ndarray,  # the very type that MLflow leaves alone; others come as well
        params: dict[str, Any] | None = None,
    ) -> list[Answer]:
        """The answers to the images, or the samples, that were asked for. Raises BadRequest."""
        request: Any = model_input
        if isinstance(request, pd.DataFrame):  # dataframe_split, dataframe_records and CSV come as a table
            if list(request.columns) not in (["image"], [0]):
                raise BadRequest("a table needs one column, called image")
            request = request.iloc[:, 0].tolist()
        try:
            return self.service.answer(request)
        except DataError as error:
            raise BadRequest(str(error)) from None


set_model(Served())
