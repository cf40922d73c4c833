"""The Python names that programs may count on. A name or a parameter that goes or changes is a line in CHANGELOG.md."""

from __future__ import annotations

import inspect

import pytest

import densitywatch
from docs.scripts.python_page import PYTHON, resolve

NAMES = {
    "densitywatch.load_model": "where",
    "densitywatch.params.load_params": "path?",
    "densitywatch.batches.score_batch.score_source": "source params root out? detector? options?",
    "densitywatch.detector.detector.load": "folder",
    "densitywatch.detector.detector.Detector.score": "self images",
    "densitywatch.detector.detector.Detector.surprise_map": "self images",
    "densitywatch.detector.detector.Detector.explain": "self scores i",
    "densitywatch.detector.detector.Scores": (
        "score p_value bits_per_dim members places? texture? label? label_probability? label_p_value?"
    ),
    "densitywatch.detector.conformal.p_values": "calibration scores",
    "densitywatch.detector.conformal.conditional_p_values": "p calibration_size confidence?",
    "densitywatch.detector.conformal.benjamini_hochberg": "p q",
    "densitywatch.detector.conformal.drift": "p past? calibration_size?",
    "densitywatch.models.common.autoregressive.PixelDensity.log_prob": "self x labels?",
    "densitywatch.models.common.autoregressive.PixelDensity.log_prob_map": "self x labels?",
    "densitywatch.models.common.autoregressive.PixelDensity.log_prob_by_label": "self x",
    "densitywatch.models.common.autoregressive.PixelDensity.sample": "self n labels? generator? given? rows?",
    "densitywatch.models.vae.VAE.elbo": "self x",
    "densitywatch.models.vae.VAE.importance_bound": "self x samples?",
    "densitywatch.models.vae.VAE.encode": "self x",
    "densitywatch.models.vae.VAE.decode": "self z",
    "densitywatch.models.vae.VAE.reconstruct": "self x",
    "densitywatch.models.vae.VAE.sample": "self n labels? generator?",
    "densitywatch.models.conditional_gan.ConditionalGAN.sample": "self n labels? generator?",
    "densitywatch.models.conditional_gan.ConditionalGAN.decode": "self z",
}
"""Each name with its parameters; `?` marks one that may be left out."""


def test_the_package_offers_its_version_and_load_model() -> None:
    assert sorted(densitywatch.__all__) == ["__version__", "load_model"]


def test_every_kind_of_model_has_its_name() -> None:
    assert sorted(densitywatch.MODELS) == [
        "autoencoder", "conditional_gan", "dcgan", "gan", "pixelcnn", "pixelcnn_pyramid", "pixelrnn", "vae"
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_keeps_its_parameters(name: str) -> None:
    parameters = inspect.signature(resolve(name)).parameters.values()
    found = [given.name + ("" if given.default is given.empty else "?") for given in parameters]
    assert " ".join(found) == NAMES[name]


def test_every_name_on_the_page_of_python_names_is_pinned_here() -> None:
    listed = {name for names in PYTHON.values() for name in names}
    assert len(listed) > 8
    assert listed <= NAMES.keys()
