"""Real Fashion-MNIST for the data tests: the checkout's own fetched files, or else fetched once into pytest's cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from densitywatch.data import fetch as sources
from densitywatch.data.prepare import prepare
from densitywatch.data.raw import read_idx
from densitywatch.files import file_digest
from densitywatch.params import DataParams, ExpectationParams, Params, load_params

TOP = Path(__file__).parents[2]
MakeParams = Callable[..., Params]


def whole(folder: Path) -> bool:
    return all(
        (folder / name).is_file() and file_digest(folder / name, "md5") == md5
        for name, md5 in sources.FASHION_MNIST_MD5.items()
    )


@pytest.fixture(scope="session")
def fashion_mnist(pytestconfig: pytest.Config) -> Path:
    """A folder with the four published IDX files; only to be read."""
    for folder in (TOP / "data/raw", pytestconfig.cache.mkdir("fashion-mnist")):
        if whole(folder):
            return folder
    sources.fetch_fashion_mnist(folder)
    return folder


@pytest.fixture(scope="session")
def garments(fashion_mnist: Path) -> npt.NDArray[np.uint8]:
    """The 10,000 published test images, (N, 28, 28)."""
    return read_idx(fashion_mnist / "t10k-images-idx3-ubyte")


@pytest.fixture(scope="session")
def make_params() -> MakeParams:
    """The default params with some keys of `data` and `expectations` changed."""
    default = load_params(TOP / "params.yaml")

    def make(*, seed: int = 1, expectations: dict[str, Any] | None = None, **data: Any) -> Params:
        return default.model_copy(
            update={
                "seed": seed,
                "data": DataParams(**{**default.data.model_dump(), **data}),
                "expectations": ExpectationParams(**{**default.expectations.model_dump(), **(expectations or {})}),
            }
        )

    return make


@pytest.fixture
def root(tmp_path: Path, fashion_mnist: Path) -> Path:
    """A project folder in which Fashion-MNIST has been fetched."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/raw").symlink_to(fashion_mnist)
    return tmp_path


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, fashion_mnist: Path, make_params: MakeParams) -> Path:
    """A project folder in which 600 + 600 images are prepared; only to be read."""
    top = tmp_path_factory.mktemp("prepared")
    (top / "data").mkdir()
    (top / "data/raw").symlink_to(fashion_mnist)
    prepare(make_params(limit=600), top)
    return top
