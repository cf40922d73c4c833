"""`densitywatch sample` draws grids, completes images and refuses what it cannot do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from densitywatch import sample
from densitywatch.errors import DataError, DensitywatchError, ModelError, ParamsError
from densitywatch.models.storage import build_model, save_model
from densitywatch.params import ModelBlock, TrainingParams
from densitywatch.sample import draw

NAMES = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")


class Standin(nn.Module):
    """Draws flat images of the label's number times ten; completes what it is given with noise."""

    size, channels, classes = 8, 1, 10
    class_names = NAMES

    def __init__(self, conditional: bool) -> None:
        super().__init__()
        self.conditional = conditional

    def sample(
        self,
        n: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        given: Tensor | None = None,
        rows: int = 0,
    ) -> Tensor:
        x = torch.randint(0, 256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
        if labels is not None:
            x = (labels * 10).to(torch.uint8)[:, None, None, None].expand(n, 1, 8, 8)
        if given is not None:
            assert given.shape == x.shape
            x[:, :, :rows] = given[:, :, :rows]
        return x


@pytest.fixture
def conditional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "load_model", lambda where: Standin(conditional=True))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "load_model", lambda where: Standin(conditional=False))


def cells(path: Path, rows: int, columns: int) -> np.ndarray:
    """The grid's cells at the images' own size: (rows, columns, 8, 8)."""
    sheet = np.asarray(Image.open(path))[:, :, 0]
    pitch = 56 + 2
    assert sheet.shape == (rows * pitch - 2, columns * pitch - 2)
    taken = [
        [sheet[r * pitch : r * pitch + 56, c * pitch : c * pitch + 56][::7, ::7] for c in range(columns)]
        for r in range(rows)
    ]
    return np.array(taken)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with a PixelCNN and a VAE that were never trained."""
    training = TrainingParams(steps=1, batch_size=1, learning_rate=1e-3)
    for kind, settings in (("pixelcnn", {"channels": 4, "dilations": [1]}), ("vae", {"channels": 4, "latent": 4})):
        torch.manual_seed(0)
        model = build_model(ModelBlock(kind=kind, settings=settings, training=training), channels=1, size=8, classes=0)
        save_model(model, tmp_path / kind, kind=kind, class_names=(), about={})
    return tmp_path


def test_a_grid_of_a_real_model_is_the_same_for_the_same_seed(models: Path) -> None:
    address = str(models / "pixelcnn")
    one, two, other = (models / f"{name}.png" for name in ("one", "two", "other"))
    assert draw(address, 9, seed=5, out=one) == one
    draw(address, 9, seed=5, out=two)
    draw(address, 9, seed=6, out=other)
    assert one.read_bytes() == two.read_bytes()
    assert one.read_bytes() != other.read_bytes()
    assert cells(one, 3, 3).shape == (3, 3, 8, 8)


@pytest.mark.usefixtures("conditional")
@pytest.mark.parametrize("label", ["Three", "three", "3"])
def test_a_label_goes_by_its_name_in_any_case_or_by_its_number(tmp_path: Path, label: str) -> None:
    draw("models/x", 4, label=label, out=tmp_path / "grid.png")
    assert (cells(tmp_path / "grid.png", 2, 2) == 30).all()


@pytest.mark.usefixtures("conditional")
def test_a_conditional_model_without_a_label_fills_one_row_a_label(tmp_path: Path) -> None:
    draw("models/x", 20, out=tmp_path / "grid.png")
    found = cells(tmp_path / "grid.png", 10, 2)
    assert (found[:, :, 0, 0] == 10 * np.arange(10)[:, None]).all()


@pytest.mark.usefixtures("plain")
def test_the_given_rows_are_kept_in_every_image(tmp_path: Path) -> None:
    given = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(given).save(tmp_path / "given.png")
    draw("models/x", 20, given=tmp_path / "given.png", rows=3, out=tmp_path / "grid.png")
    found = cells(tmp_path / "grid.png", 5, 4)
    assert (found[:, :, :3] == given[:3]).all()
    assert not (found[:, :, 3:] == given[3:]).all()


REFUSED: list[tuple[dict[str, Any], type[DensitywatchError], str]] = [
    ({"n": 0}, ParamsError, "-n 0: draw between 1 and 10,000 images"),
    ({"out": Path("grid.jpg")}, ParamsError, "give a name that ends in .png"),
    ({"rows": 3}, ParamsError, "pass the image with --given"),
    ({"label": "boot"}, ModelError, "models/x: this model has no labels"),
    ({"given": Path("missing.png")}, DataError, "missing.png: no such file"),
    ({"given": Path("text.png")}, DataError, "text.png: "),
    ({"given": Path("given.png"), "rows": 9}, ParamsError, "--rows 9: the model's images have 8 rows"),
]


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(("asked", "error", "sentence"), REFUSED)
def test_what_cannot_be_drawn_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("no image")
    Image.new("L", (8, 8)).save("given.png")
    with pytest.raises(error) as caught:
        draw("models/x", **({"n": 4, "out": tmp_path / "grid.png"} | asked))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "grid.png").exists()


@pytest.mark.usefixtures("conditional")
def test_an_unknown_label_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"--label boot: no such label; the model has Zero, One, "):
        draw("models/x", 4, label="boot", out=tmp_path / "grid.png")


def test_a_model_that_completes_no_images_says_so(models: Path) -> None:
    Image.new("L", (8, 8)).save(models / "given.png")
    with pytest.raises(ModelError, match="this model completes no images; take an autoregressive one"):
        draw(str(models / "vae"), 2, given=models / "given.png", out=models / "grid.png")


def test_a_model_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model"):
        draw(str(tmp_path / "models" / "gan"), 2, out=tmp_path / "grid.png")
