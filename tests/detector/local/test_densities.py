"""The Gaussian of each place and the mixture of all places, against numpy and against known densities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from densitywatch.detector.local import densities
from densitywatch.detector.local.densities import PlaceMoments


def features(count: int, places: int, dimensions: int, seed: int = 0) -> torch.Tensor:
    """Correlated features whose mean and covariance differ from place to place."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(places, dimensions, dimensions))
    centre = np.random.default_rng(98).normal(size=(places, dimensions)) * 3
    return torch.tensor(
        np.einsum("bpd,pde->bpe", rng.normal(size=(count, places, dimensions)), mixing) + centre
    ).float()


def moments_of(x: torch.Tensor, step: int = 7) -> PlaceMoments:
    moments = PlaceMoments(*x.shape[1:])
    for part in x.split(step):
        moments.add(part)
    return moments


def test_moments_of_one_pass_equal_numpys() -> None:
    x = features(50, 6, 4)
    moments = moments_of(x)
    for place in range(6):
        rows = x[:, place].numpy()
        np.testing.assert_allclose(moments.mean()[place], rows.mean(0), atol=1e-6)
        np.testing.assert_allclose(moments.covariance()[place], np.cov(rows, rowvar=False, bias=True), atol=1e-5)


def test_moments_do_not_depend_on_how_the_images_are_cut_into_batches() -> None:
    x = features(40, 3, 5)
    one, many = moments_of(x, 40), moments_of(x, 3)
    torch.testing.assert_close(one.covariance(), many.covariance(), atol=1e-10, rtol=0)


def test_shrinkage_counts_the_covariance_of_all_places_as_so_many_images() -> None:
    x, strength = features(30, 5, 3), 20.0
    moments = moments_of(x)
    fitted = densities.place_gaussian(moments, strength)
    own = np.stack([np.cov(x[:, place].numpy(), rowvar=False, bias=True) for place in range(5)])
    within = own.mean(0)
    wanted = (30 * own + strength * within) / (30 + strength)
    wanted += np.eye(3) * (densities.FLOOR * np.trace(within) / 3 + densities.TINY)
    precision = np.swapaxes(fitted["whitening"], 1, 2) @ fitted["whitening"]
    np.testing.assert_allclose(np.linalg.inv(precision), wanted, rtol=1e-3, atol=1e-3)


def test_fewer_images_than_dimensions_still_give_a_density() -> None:
    x = features(8, 4, 30)
    fitted = densities.place_gaussian(moments_of(x), 10.0)
    assert np.isfinite(densities.place_nll(features(5, 4, 30, seed=1), fitted).numpy()).all()


def test_the_log_density_is_that_of_the_gaussian() -> None:
    x = features(200, 3, 4)
    moments = moments_of(x)
    fitted = densities.place_gaussian(moments, 3.0)
    new = features(6, 3, 4, seed=2)
    nll = densities.place_nll(new, fitted) + 0.5 * 4 * np.log(2 * np.pi)
    for place in range(3):
        inverse = fitted["whitening"][place].astype(np.float64)
        exact = stats.multivariate_normal(fitted["mean"][place], np.linalg.inv(inverse.T @ inverse))
        np.testing.assert_allclose(nll[:, place], -exact.logpdf(new[:, place].numpy()), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("count", "strength"), [(12, 10.0), (40, 3.0), (40, 100.0)])
def test_an_image_that_is_left_out_is_as_far_as_from_gaussians_that_were_fitted_without_it(
    count: int, strength: float
) -> None:
    x = features(count, 60, 5)
    distance = densities.place_distance(x, densities.place_gaussian(moments_of(x), strength))
    without = densities.left_out(distance, count, strength)
    for image in range(0, count, 5):
        rest = densities.place_gaussian(moments_of(x[torch.arange(count) != image]), strength)
        wanted = densities.place_distance(x[image : image + 1], rest)[0]
        # the covariance of all places owes a little to the image, too
        torch.testing.assert_close(without[image], wanted, rtol=0.05, atol=0.0)
        assert (without[image] > distance[image]).all()
    # a new image's distances are of this size, those of an image that was fitted on are smaller
    new = densities.place_distance(features(400, 60, 5, seed=3), densities.place_gaussian(moments_of(x), strength))
    assert float(without.mean()) == pytest.approx(float(new.mean()), rel=0.06)
    assert float(distance.mean()) < 0.97 * float(new.mean())


def with_codes(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features at 60 places whose means follow the codes of their images, in another way at each place."""
    rng = np.random.default_rng(seed)
    code = rng.normal(size=(count, 3)) * [1.0, 2.0, 0.5]
    slope = np.random.default_rng(97).normal(size=(60, 5, 3))
    return features(count, 60, 5, seed) + torch.tensor(np.einsum("bk,pdk->bpd", code, slope)).float(), torch.tensor(
        code
    ).float()


def moments_with(x: torch.Tensor, code: torch.Tensor) -> PlaceMoments:
    moments = PlaceMoments(x.shape[1], x.shape[2], code.shape[1])
    for part, its in zip(x.split(7), code.split(7), strict=True):
        moments.add(part, its)
    return moments


def test_given_its_code_an_image_has_the_conditional_density_of_the_joint_gaussian() -> None:
    (x, code), strength = with_codes(40), 10.0
    fitted = densities.place_gaussian(moments_with(x, code), strength)
    together = np.concatenate([x.numpy(), np.broadcast_to(code.numpy()[:, None], (40, 60, 3))], 2)
    own = np.stack([np.cov(together[:, place], rowvar=False, bias=True) for place in range(60)])
    shrunk = (40 * own + strength * own.mean(0)) / (40 + strength)
    for block in (slice(0, 5), slice(5, 8)):
        floor = densities.FLOOR * np.trace(own.mean(0)[block, block]) / (block.stop - block.start) + densities.TINY
        shrunk[:, block, block] += floor * np.eye(block.stop - block.start)
    new, of_new = with_codes(6, seed=2)
    nll = densities.place_nll(new, fitted, of_new) + 0.5 * 5 * np.log(2 * np.pi)
    for place in (0, 31, 59):
        mean = together[:, place].mean(0)
        both = np.concatenate([new[:, place].numpy(), of_new.numpy()], 1)
        joint = stats.multivariate_normal(mean, shrunk[place]).logpdf(both)
        of_code = stats.multivariate_normal(mean[5:], shrunk[place, 5:, 5:]).logpdf(of_new.numpy())
        np.testing.assert_allclose(nll[:, place], of_code - joint, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("strength", [3.0, 100.0])
def test_with_codes_too_an_image_that_is_left_out_is_as_far_as_without_it(strength: float) -> None:
    x, code = with_codes(40)
    fitted = densities.place_gaussian(moments_with(x, code), strength)
    distance = densities.place_distance(x, fitted, code)
    without = densities.left_out(distance, 40, strength, densities.code_distance(code, fitted))
    for image in range(0, 40, 5):
        others = torch.arange(40) != image
        rest = densities.place_gaussian(moments_with(x[others], code[others]), strength)
        wanted = densities.place_distance(x[image : image + 1], rest, code[image : image + 1])[0]
        # the mean covariance owes a little to the image, and with strong shrinkage to its code
        torch.testing.assert_close(without[image], wanted, rtol=0.1, atol=0.0)
        assert float(without[image].mean()) == pytest.approx(float(wanted.mean()), rel=0.03)
        assert (without[image] > distance[image]).all()


def test_permuted_places_permute_the_distances() -> None:
    x, new = features(60, 7, 4), features(3, 7, 4, seed=5)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    plain = densities.place_distance(new, densities.place_gaussian(moments_of(x), 10.0))
    permuted = densities.place_distance(new[:, order], densities.place_gaussian(moments_of(x[:, order]), 10.0))
    torch.testing.assert_close(permuted, plain[:, order], atol=1e-4, rtol=1e-4)


def test_features_that_never_change_are_not_surprising_and_another_value_is() -> None:
    same = torch.full((20, 4, 3), 2.0)
    fitted = densities.place_gaussian(moments_of(same), 10.0)
    distance = densities.place_distance(torch.cat([same[:1], same[:1] + 1.0]), fitted)
    assert np.isfinite(distance.numpy()).all()
    assert (distance[0] < 1e-2).all()
    assert (distance[1] > 100).all()


@pytest.mark.parametrize(("count", "weak"), [(2000, True), (12, False)])
def test_held_out_images_choose_weak_shrinkage_with_many_images_and_strong_with_few(count: int, weak: bool) -> None:
    """With many images a place knows its own covariance; with few that of all places is the better guess."""
    rng = np.random.default_rng(3)
    mixing = rng.normal(size=(6, 8, 8)) if weak else np.broadcast_to(rng.normal(size=(8, 8)), (6, 8, 8))

    def drawn(n: int) -> torch.Tensor:
        return torch.tensor(np.einsum("bpd,pde->bpe", rng.normal(size=(n, 6, 8)), mixing)).float()

    strength, fitted = densities.choose_strength(moments_of(drawn(count), 500), [(drawn(100), None)])
    assert strength <= 30 if weak else strength >= 1000
    assert set(fitted) == {"mean", "whitening"}


def test_the_mixture_finds_a_feature_that_no_place_has() -> None:
    rng = np.random.default_rng(0)
    normal = np.concatenate([rng.normal(size=(500, 3)), rng.normal(size=(500, 3)) + 8])
    fitted = densities.anywhere_mixture(normal, seed=0)
    between = torch.tensor([[[4.0, 4.0, 4.0], [0.0, 0.0, 0.0], [8.0, 8.0, 8.0]]])
    nll = densities.anywhere_nll(between, fitted)[0]
    assert nll[0] > nll[1] + 5
    assert nll[0] > nll[2] + 5


@pytest.mark.parametrize("count", [15, 60, 400, 3000])
def test_the_search_for_the_strength_finds_the_best_of_all(count: int) -> None:
    rng = np.random.default_rng(4)
    mixing = rng.normal(size=(6, 8, 8)) * 0.4 + rng.normal(size=(8, 8))

    def drawn(n: int) -> torch.Tensor:
        return torch.tensor(np.einsum("bpd,pde->bpe", rng.normal(size=(n, 6, 8)), mixing)).float()

    moments, held_out = moments_of(drawn(count), 500), drawn(200)
    every = [
        float(densities.place_nll(held_out, densities.place_gaussian(moments, k)).double().sum())
        for k in densities.STRENGTHS
    ]
    strength, _ = densities.choose_strength(moments, [(held_out, None)])
    assert strength == densities.STRENGTHS[int(np.argmin(every))]
