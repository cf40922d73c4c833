"""What an address means: a folder, or a version on a real sqlite store."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import densitywatch
from densitywatch.errors import DensitywatchError, RegistryError
from densitywatch.models.storage import WEIGHTS
from densitywatch.params import Params
from densitywatch.registry import versions as registry
from densitywatch.registry.download import download_model, model_folder
from densitywatch.tracking import runs as tracking
from tests.registry.registry_project import images, write_model


def test_a_folder_counts_from_the_project_and_is_not_looked_at(tmp_path: Path) -> None:
    assert model_folder("models/vae", root=tmp_path) == tmp_path / "models" / "vae"
    assert model_folder(tmp_path / "elsewhere", root=Path("/project")) == tmp_path / "elsewhere"
    assert model_folder("models/vae") == Path("models/vae")


def test_an_address_gives_the_folder_and_the_loaded_model(
    params: Params, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(root, "fetched", steps=1)
    registry.register("fetched", params, root)
    registry.promote("fetched", params, root)
    for address in ("models:/densitywatch-fetched@champion", "models:/densitywatch-fetched/1"):
        found = download_model(address, params, root)
        assert (found / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.tracking_uri(params, root))
    model = densitywatch.load_model("models:/densitywatch-fetched@champion")
    assert torch.isfinite(model.log_prob(torch.from_numpy(images(2, 9)))).all()


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        (
            "models:/densitywatch-nothing@champion",
            "no version with the alias champion; run `densitywatch promote nothing`",
        ),
        ("models:/densitywatch-nothing/3", "no version 3"),
        ("models:/densitywatch-nothing", "is no registry address"),
        ("models:/../../etc@x", "is no registry address"),
    ],
)
def test_an_address_that_leads_nowhere_is_one_sentence(params: Params, root: Path, address: str, sentence: str) -> None:
    tracking.prepare_store(params, root)
    with pytest.raises(RegistryError, match=sentence.replace("`", ".")):
        download_model(address, params, root)


def test_a_project_without_a_store_is_one_sentence_and_gets_none(params: Params, tmp_path: Path) -> None:
    with pytest.raises(DensitywatchError, match="cannot be opened"):
        download_model("models:/densitywatch-vae@champion", params, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_altered_files_of_a_version_are_refused(params: Params, root: Path) -> None:
    write_model(root, "altered")
    registry.register("altered", params, root)
    folder = download_model("models:/densitywatch-altered@challenger", params, root)
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"more")
    with pytest.raises(RegistryError, match="not those that were registered"):
        download_model("models:/densitywatch-altered@challenger", params, root)
    with pytest.raises(RegistryError, match="not those that were registered"):
        registry.promote("altered", params, root)
