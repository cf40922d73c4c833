"""Every score by the same demands, and the arithmetic behind them against what is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from densitywatch.detector.calibrate import fit_member, fitting_data
from densitywatch.detector.feature_cache import FeatureCache, Models
from densitywatch.detector.gaussian_mixture import fit_mixture, mixture_nll
from densitywatch.detector.image_statistics import composition_statistics, gradient_histograms, webp_nats
from densitywatch.detector.member import FittingData
from densitywatch.detector.member_table import MEMBERS, find_member
from densitywatch.detector.pixel_surprise import surprise_statistics
from densitywatch.detector.score_regression import fit_score_regression, standardised_residual
from densitywatch.detector.scores.transformations import (
    TRANSFORMATIONS,
    fit_transformation_judge,
    load_transformation_judge,
    transformed,
)
from densitywatch.detector.tail_combination import fit_tail, tail_surprise, variance_ratio
from densitywatch.errors import ModelError, ParamsError
from densitywatch.models.storage import load_model_folder
from densitywatch.outlier_benchmark.auroc import auroc, separation
from densitywatch.params import Params
from tests.small_project import bars, make_project

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    root = tmp_path_factory.mktemp("scores")
    return root, make_project(root, ROOT / "params.yaml", declared=("flip", "rotate", "invert"))


@pytest.fixture(scope="module")
def given(project: tuple[Path, Params]) -> tuple[FittingData, Models]:
    return fitting_data(project[1], project[0])


@pytest.fixture(scope="module")
def fitted_members(project: tuple[Path, Params]) -> Callable[[str], tuple[dict[str, Any], Models]]:
    """Each member fitted once, and the models that it has read, which no other member reads."""

    @cache
    def fitted(name: str) -> tuple[dict[str, Any], Models]:
        what, models = fitting_data(project[1], project[0])
        return fit_member(find_member(name), what), models

    return fitted


@pytest.mark.parametrize("name", sorted(MEMBERS))
def test_every_score_gives_one_finite_number_an_image_and_the_same_one_in_any_batch(
    name: str, fitted_members: Callable[[str], tuple[dict[str, Any], Models]]
) -> None:
    member = find_member(name)
    fitted, models = fitted_members(name)
    images, _ = bars(12, seed=77)
    whole = member.score(FeatureCache(images, models), fitted)
    assert whole.shape == (12,)
    assert np.isfinite(whole).all()
    parts = np.concatenate([member.score(FeatureCache(images[i : i + 5], models), fitted) for i in range(0, 12, 5)])
    assert np.allclose(whole, parts, rtol=1e-3, atol=2e-3)
    assert member.score.__doc__, "a score names its source"
    assert any(year in str(member.score.__doc__) for year in ("19", "20")) or name in {
        "pixel_mixture",
        "pixel_arrangement",
        "surprise_arrangement",
        "transformation_ratio",
    }


@pytest.mark.parametrize("name", sorted(MEMBERS))
def test_a_member_reads_the_models_that_it_names_and_no_others(
    name: str, fitted_members: Callable[[str], tuple[dict[str, Any], Models]]
) -> None:
    member = find_member(name)
    fitted, models = fitted_members(name)
    member.score(FeatureCache(bars(3, seed=56)[0], models), fitted)
    assert set(models.used) == set(member.reads)


@pytest.mark.parametrize("name", sorted(MEMBERS))
def test_every_score_survives_flat_and_noisy_images(
    name: str, fitted_members: Callable[[str], tuple[dict[str, Any], Models]]
) -> None:
    member = find_member(name)
    fitted, models = fitted_members(name)
    noise = np.random.default_rng(0).integers(0, 256, (2, 1, 14, 14), dtype=np.uint8)
    images = np.concatenate([np.zeros_like(noise), np.full_like(noise, 255), noise])
    assert np.isfinite(member.score(FeatureCache(images, models), fitted)).all()


def test_an_unknown_score_is_named_together_with_those_that_exist() -> None:
    with pytest.raises(ParamsError, match=r"no score 'wisdom'; the scores are: .*pixelcnn_nll"):
        find_member("wisdom")


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="needs the model 'pixelcnn'"):
        FeatureCache(bars(2, 0)[0], Models(tmp_path)).nll("pixelcnn")


@pytest.mark.parametrize("head", ["softmax", "logistic_mixture"])
@pytest.mark.parametrize("channels", [1, 3])
def test_expected_surprise_and_its_variance_are_those_of_the_256_probabilities(head: str, channels: int) -> None:
    from densitywatch.models.pixelcnn import PixelCNN, Settings

    torch.manual_seed(0)
    settings = Settings(channels=4, dilations=(1,), head=head, components=3)
    model = PixelCNN(settings, channels=channels, size=5, classes=0)
    x = torch.randint(0, 256, (2, channels, 5, 5), dtype=torch.uint8)
    with torch.no_grad():
        surprise, expected, variance = surprise_statistics(model, x)
        features = model.features(x)
        tables = [model.head.table(features, x, k) for k in range(channels)]  # (B, 256, H, W) each
        entropy = sum(-(t.exp() * t).sum(1) for t in tables)
        second = sum((t.exp() * t**2).sum(1) - (t.exp() * t).sum(1) ** 2 for t in tables)
        assert torch.allclose(surprise, -model.log_prob_map(x), atol=1e-4)
        assert torch.allclose(expected, entropy, atol=2e-3)
        assert torch.allclose(variance, second, atol=2e-2)


def test_surplus_surprise_is_zero_on_average_under_the_model_itself(given: tuple[FittingData, Models]) -> None:
    model = given[1]["pixelcnn"]
    with torch.no_grad():
        x = model.sample(60, generator=torch.Generator().manual_seed(3))
        surprise, expected, variance = (part.sum((1, 2)) for part in surprise_statistics(model, x))
    z = ((surprise - expected) / variance.sqrt()).numpy()
    assert abs(z.mean()) < 4 / math.sqrt(60)
    assert 0.6 < z.std() < 1.4


def test_a_model_without_pixel_distributions_is_refused() -> None:
    with pytest.raises(ModelError, match="no distribution for each pixel"):
        surprise_statistics(torch.nn.Linear(1, 1), torch.zeros(1, 1, 4, 4, dtype=torch.uint8))


def test_the_mixture_agrees_with_the_gaussian_density_that_it_is_when_it_has_one_component() -> None:
    from scipy import stats

    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 3)) @ np.array([[1, 0.5, 0], [0, 1, 0.2], [0, 0, 2.0]])
    fitted = fit_mixture(x, dimensions=3, components=1, seed=0, floor=1e-9)
    wanted = -stats.multivariate_normal(x.mean(0), np.cov(x.T, bias=True)).logpdf(x[:50])
    assert np.allclose(mixture_nll(x[:50], fitted), wanted, atol=1e-4)


def test_the_mixture_takes_two_identical_images() -> None:
    fitted = fit_mixture(np.zeros((2, 4)), dimensions=3, components=5, seed=0)
    assert np.isfinite(mixture_nll(np.ones((1, 4)), fitted)).all()


def test_what_is_bound_to_be_high_is_taken_out_and_what_is_not_stays() -> None:
    rng = np.random.default_rng(1)
    given = rng.normal(size=(3000, 4))
    noise = rng.normal(size=3000) * np.exp(0.3 * given[:, 1])
    fitted = fit_score_regression(given, 50 + 10 * given[:, 0] ** 2 + noise)
    fresh = rng.normal(size=(2000, 4))
    normal = standardised_residual(fresh, 50 + 10 * fresh[:, 0] ** 2 + rng.normal(size=2000), fitted)
    raised = standardised_residual(fresh, 53 + 10 * fresh[:, 0] ** 2 + rng.normal(size=2000), fitted)
    assert abs(np.corrcoef(normal, fresh[:, 0] ** 2)[0, 1]) < 0.6  # the ridge leaves a little; before, it is 0.99
    assert auroc(normal, raised) > 0.9


def test_tail_surprise_rises_with_the_score_counts_inside_and_goes_on_beyond_all_that_was_seen() -> None:
    rng = np.random.default_rng(2)
    seen = rng.normal(size=2000)
    fitted = fit_tail(seen)
    ladder = tail_surprise(np.linspace(-4, 40, 300), fitted)
    assert (np.diff(ladder) >= 0).all()
    assert ladder[-1] > ladder[-100] > -math.log(1 / 2000)
    assert np.isclose(tail_surprise(np.quantile(seen, [0.5]), fitted)[0], math.log(2), atol=0.02)
    assert np.isfinite(tail_surprise(np.array([0.0]), fit_tail(np.zeros(5)))).all()


def test_composition_hardly_knows_where_things_lie_and_gradients_do() -> None:
    images, _ = bars(50, 3)
    moved = images[..., ::-1].copy()
    spread = composition_statistics(images).std(0) + 1e-6
    assert (np.abs(composition_statistics(moved) - composition_statistics(images)) / spread).mean() < 0.3
    gradients = gradient_histograms(images)
    assert np.abs(gradient_histograms(moved) - gradients).mean() > 0.3 * gradients.std()


def test_features_take_small_and_colour_images() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 5, 5), dtype=np.uint8)
    assert np.isfinite(composition_statistics(images)).all()
    assert np.isfinite(gradient_histograms(images)).all()
    assert (webp_nats(images) > 0).all()


def test_declared_words_stand_for_the_transformations_they_name() -> None:
    x = np.arange(12, dtype=np.uint8).reshape(1, 1, 3, 4)[..., :3]
    flips = transformed(x, ("flip",))
    assert (flips[0] == x[..., ::-1]).all()
    assert (flips[1] == x[..., ::-1, :]).all()
    assert len(transformed(x, ("flip", "rotate", "invert"))) == 6
    assert (transformed(x, ("invert",))[0] == 255 - x).all()


def test_the_judge_learns_to_tell_an_image_from_its_declared_transformation() -> None:
    images, _ = bars(300, 5)
    model = load_transformation_judge(fit_transformation_judge(images, ("flip",), steps=40, seed=0))
    fresh, _ = bars(100, 6)
    with torch.no_grad():
        normal, flipped = (model(torch.from_numpy(x.copy())).numpy() for x in (fresh, fresh[..., ::-1]))
    assert auroc(normal, flipped) > 0.95


def test_the_odds_of_an_image_and_of_its_inversion_are_opposite() -> None:
    images, _ = bars(80, 5)
    model = load_transformation_judge(fit_transformation_judge(images, ("invert",), steps=3, seed=0))
    with torch.no_grad():
        odds, inverted = (model(torch.from_numpy(x)).numpy() for x in (images, 255 - images))
    assert np.allclose(odds, -inverted, atol=1e-5)


def test_the_judge_follows_from_its_seed_and_leaves_the_global_generator_alone() -> None:
    images, _ = bars(80, 5)
    before = torch.get_rng_state()
    first, second = (fit_transformation_judge(images, ("flip", "rotate"), steps=3, seed=0) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert load_transformation_judge(first).declared == ("flip", "rotate")


def test_every_declared_word_holds_the_inverse_of_each_of_its_transformations() -> None:
    x = np.random.default_rng(0).integers(0, 256, (2, 1, 5, 5), dtype=np.uint8)
    for word in TRANSFORMATIONS:
        for changed in transformed(x, (word,)):
            assert any((back == x).all() for back in transformed(changed, (word,))), word


def test_overlap_is_how_many_copies_of_the_same_surprise_were_added() -> None:
    surprise = np.random.default_rng(0).exponential(size=(20000, 3))
    assert np.isclose(variance_ratio(surprise.sum(1)), 1.0, atol=0.05)
    assert np.isclose(variance_ratio(3 * surprise[:, 0]), 3.0, atol=0.15)
    assert variance_ratio(np.zeros(4)) == 1.0


def test_separation_agrees_with_scikit_learn_ties_included() -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    rng = np.random.default_rng(0)
    normal, outlier = np.round(rng.normal(size=300), 1), np.round(rng.normal(size=200) + 1, 1)
    truth, scores = np.repeat([0, 1], [300, 200]), np.concatenate([normal, outlier])
    found = separation(normal, outlier, resamples=200)
    assert np.isclose(found["auroc"][0], roc_auc_score(truth, scores))
    assert np.isclose(found["aupr"][0], average_precision_score(truth, scores))
    for value, low, high in found.values():
        assert low <= value <= high
    assert 0.02 < found["auroc"][2] - found["auroc"][1] < 0.15


def test_separation_of_sets_that_do_not_overlap_is_perfect_and_nan_counts_as_outlying() -> None:
    found = separation(np.arange(100.0), np.array([1000.0, np.nan, np.inf]))
    assert found == {"auroc": [1.0] * 3, "aupr": [1.0] * 3, "fpr_at_95_tpr": [0.0] * 3, "tpr_at_1_fpr": [1.0] * 3}
    assert auroc(np.zeros(5), np.zeros(5)) == 0.5


def test_members_read_the_model_that_lies_in_the_folder(given: tuple[FittingData, Models]) -> None:
    what, models = given
    images = what.validation.images[:5]
    model = load_model_folder(models.folders[0] / "pixelcnn")
    with torch.no_grad():
        wanted = -model.log_prob(torch.from_numpy(images)).numpy()
    assert np.allclose(find_member("pixelcnn_nll").score(FeatureCache(images, models), {}), wanted, rtol=1e-5)
