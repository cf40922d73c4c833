"""params.yaml: whatever does not fit is one sentence that names the key, before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from densitywatch.errors import ParamsError
from densitywatch.models.storage import check_settings
from densitywatch.params import load_params

PROJECT = Path(__file__).parent.parent


def params_with(tmp_path: Path, key: str, value: Any) -> Path:
    content = yaml.safe_load((PROJECT / "params.yaml").read_text())
    *way, last = key.split(".")
    block = content
    for part in way:
        block = block[part]
    if value is ...:
        del block[last]
    else:
        block[last] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_projects_own_params_are_accepted_with_every_models_settings() -> None:
    params = load_params(PROJECT / "params.yaml")
    assert {"vae", "pixelcnn"} <= set(params.models)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.colour", 1, "data.colour: unknown key"),
        ("data.size", "big", "data.size: neither a number of pixels nor [height, width]"),
        ("data.size", [500, 2000, 3], "data.size: neither a number of pixels nor [height, width]"),
        ("data.size", [500, "2000"], "data.size: neither a number of pixels nor [height, width]"),
        ("data.size", True, "data.size: neither a number of pixels nor [height, width]"),
        ("data.size", 2, "data.size: 2 x 2 pixels; take a number from 4 to 1024, or [height, width]"),
        ("data.size", [3, 900], "data.size: 900 x 3 pixels; take a number from 4 to 1024"),
        (
            "data.size",
            [200, 20000],
            "data.size: 20000 x 200 pixels; take a number from 4 to 1024, or [height, width] of",
        ),
        ("detector.tiles", 100, "detector.tiles: input should be a multiple of 8"),
        ("detector.tiles", 32, "detector.tiles: input should be greater than or equal to 64"),
        ("data.size", ..., "data.size: missing"),
        ("data.channels", 2, "data.channels"),
        ("data.source", "folder", "data: address must be given"),
        ("data.group", "exif:soon", "data.group: 'exif:soon' is no block of EXIF time; write exif:MINUTES"),
        ("data.group", "exif:0", "data.group: 'exif:0' is no block of EXIF time"),
        ("data.group", "scene_(", "data.group: 'scene_(' is no rule and no regular expression"),
        ("data.group", "scenes", "data.group: 'scenes' is no rule, and as a pattern it has 0 captures"),
        ("data.group", r"(a)(\d)", "as a pattern it has 2 captures"),
        ("data.group", "folder", "data: group must be null or auto for source: fashion_mnist, which has no groups"),
        ("data.address", [], "data: address must"),
        ("data.calibration_time", "soon", "data.calibration_time"),
        ("data.gate", 0.9, "data: validation + calibration + gate + test"),
        ("data.validation", 0.9, "data: validation + calibration + gate + test"),
        ("git.uncommitted", "ignore", "git.uncommitted: input should be 'record' or 'refuse'"),
        ("device.precision", "float64", "device.precision"),
        ("device.precision", "16-mixed", "device.precision: 16-mixed scales the loss"),
        ("models.vae.training.precision", "16-mixed", "models.vae.training.precision: 16-mixed scales the loss"),
        ("device.devices", 0, "device.devices: 0 devices cannot compute"),
        ("device.devices", -1, "device.devices: -1 devices cannot compute"),
        ("detector.reads", [], "detector.reads"),
        ("models.vae.training.learning_rate", -1.0, "models.vae.training.learning_rate"),
        ("models.vae.training.betas", [0.9, 1.5], "models.vae.training.betas.1: input should be less than 1"),
        ("models.vae.training.betas", [-0.1, 0.9], "models.vae.training.betas.0: input should be greater"),
        ("evaluate.test_images", 1, "evaluate.test_images: input should be greater than or equal to 2"),
        ("evaluate.probe.labels", [0], "evaluate.probe.labels.0: input should be greater than or equal to 1"),
        ("evaluate.probe.labels", [100, -5], "evaluate.probe.labels.1: input should be greater than or equal to 1"),
        ("evaluate.probe.regularisation", [0], "evaluate.probe.regularisation.0: input should be greater than 0"),
        (
            "evaluate.probe.regularisation",
            [float("inf")],
            "evaluate.probe.regularisation.0: input should be a finite number",
        ),
        ("models.vae.settings", {"latent": 0}, "models.vae.settings.latent"),
        ("models.vae.settings", {"latnet": 8}, "models.vae.settings.latnet: unknown key"),
        ("models.pixelcnn.settings", {"head": "gaussian"}, "models.pixelcnn.settings.head"),
        ("models.vae.kind", "no_such_model", "models.vae.kind: 'no_such_model' has no file"),
        ("models.vae.kind", "../vae", "models.vae.kind"),
        ("models.vae.kind", "header", "models.vae.kind: 'header' is no model"),
        ("seed", -1, "seed"),
    ],
)
def test_what_does_not_fit_is_one_sentence_naming_the_key(key: str, value: Any, message: str, tmp_path: Path) -> None:
    path = params_with(tmp_path, key, value)
    with pytest.raises(ParamsError) as caught:
        check_settings(load_params(path), path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("content", ["", "- a list", "data: {", "\x00"])
def test_a_file_that_is_no_mapping_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(content)
    with pytest.raises(ParamsError, match=r"params\.yaml: "):
        load_params(path)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="no such file; run from the project's top folder or pass --params"):
        load_params(tmp_path / "params.yaml")


def test_a_size_is_a_number_or_height_and_width(tmp_path: Path) -> None:
    for given, kept in ((300, 300), ([256, 256], 256), ([500, 2000], (500, 2000)), ([4, 100_000], (4, 100_000))):
        assert load_params(params_with(tmp_path, "data.size", given)).data.size == kept


def test_tiles_that_show_nothing_more_than_the_whole_are_refused(tmp_path: Path) -> None:
    path = params_with(tmp_path, "data.size", 256)
    content = yaml.safe_load(path.read_text())
    content["detector"] |= {"size": 256, "tiles": 256}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ParamsError, match=r"detector\.tiles: detector\.size is data\.size, 256 pixels, so tiles show"):
        load_params(path)


def test_squares_are_asked_of_photographs_that_are_cut_into_patches(tmp_path: Path) -> None:
    path = params_with(tmp_path, "data.size", [20, 40])
    content = yaml.safe_load(path.read_text())
    content["data"]["source"] = "photos"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ParamsError, match="size must be one number for source: photos"):
        load_params(path)


def test_params_cannot_be_changed_once_read() -> None:
    params = load_params(PROJECT / "params.yaml")
    with pytest.raises(ValueError, match="frozen"):
        params.seed = 2  # type: ignore[misc]
