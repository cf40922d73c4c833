from __future__ import annotations

from pathlib import Path

import pytest

from densitywatch.params import Params, load_params

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def params() -> Params:
    """The default profile with chunks of eight files, so that small batches have several."""
    whole = load_params(PROJECT / "params.yaml")
    return whole.model_copy(update={"detector": whole.detector.model_copy(update={"batch_size": 8})})
