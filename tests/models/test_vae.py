"""The VAE's mathematics: bounds below the exact value, the KL in closed form, probabilities that sum to one."""

from __future__ import annotations

import math

import pytest
import torch

from densitywatch.models.vae import VAE, Settings, diagonal_gaussian_log_prob, kl_to_standard_normal


def small_vae(channels: int = 1, latent: int = 1, head: str = "logistic_mixture") -> VAE:
    torch.manual_seed(0)
    settings = Settings(channels=4, latent=latent, components=2, head=head)
    model = VAE(settings, channels=channels, size=4, classes=0).double()
    with torch.no_grad():  # untrained, z hardly matters: let it matter
        for parameter in model.parameters():
            parameter.mul_(1.7)
    return model


@torch.no_grad()
def test_elbo_is_below_the_importance_bound_and_both_are_below_the_exact_value() -> None:
    model = small_vae()
    x = torch.randint(0, 256, (3, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    # one latent dimension: log p(x) = log of the integral of p(x|z) N(z) over a fine grid is the known answer
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    log_prior = diagonal_gaussian_log_prob(z[:, None], torch.zeros(1), torch.zeros(1))
    exact = torch.stack(
        [torch.logsumexp(model.conditional_log_prob(one.expand(4001, 1, 4, 4), z[:, None]) + log_prior, 0) for one in x]
    ) + math.log(16 / 4000)
    torch.manual_seed(2)
    elbo = torch.stack([model.elbo(x) for _ in range(1000)]).mean(0)
    bound = torch.stack([model.importance_bound(x, samples=3) for _ in range(1000)]).mean(0)
    assert (elbo < bound).all()
    assert (bound < exact).all()
    assert torch.allclose(model.importance_bound(x, samples=4000), exact, atol=0.05)


def test_the_kl_is_the_expected_difference_of_log_densities() -> None:
    torch.manual_seed(0)
    mean, log_variance = torch.randn(4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    z = mean + (0.5 * log_variance).exp() * torch.randn(400_000, 4, dtype=torch.float64)
    zero = torch.zeros(4, dtype=torch.float64)
    differences = diagonal_gaussian_log_prob(z, mean, log_variance) - diagonal_gaussian_log_prob(z, zero, zero)
    assert float(kl_to_standard_normal(mean, log_variance)) == pytest.approx(float(differences.mean()), abs=0.02)


def test_the_kl_of_the_prior_with_itself_is_zero() -> None:
    assert float(kl_to_standard_normal(torch.zeros(3), torch.zeros(3))) == 0.0


@pytest.mark.parametrize("head", ["softmax", "logistic_mixture"])
@pytest.mark.parametrize("channels", [1, 3])
@torch.no_grad()
def test_decoder_probabilities_of_a_pixel_sum_to_one_over_all_256_values(channels: int, head: str) -> None:
    model = small_vae(channels, head=head)
    features = model.decoder_features(torch.randn(2, 1, dtype=torch.float64))
    x = torch.randint(0, 256, (2, channels, 4, 4), dtype=torch.uint8)
    for k in range(channels):
        total = model.head.table(features, x, k).exp().sum(1)
        assert torch.allclose(total, torch.ones_like(total), atol=1e-9)


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 15), (3, 32)])
@torch.no_grad()
def test_images_of_any_size_come_back_in_their_shape(channels: int, size: int) -> None:
    model = VAE(Settings(channels=4, latent=2), channels=channels, size=size, classes=0)
    x = torch.randint(0, 256, (2, channels, size, size), dtype=torch.uint8)
    for images in (model.reconstruct(x), model.sample(2)):
        assert images.shape == x.shape
        assert images.dtype == torch.uint8
    assert model.encode(x).shape == (2, 2)


def test_the_two_terms_of_the_elbo_are_logged_apart_and_add_up() -> None:
    model = small_vae().float()
    loss, logs = model.loss(torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8))
    terms = logs["reconstruction_bits_per_dim"] + logs["kl_bits_per_dim"]
    assert float(loss.detach()) == pytest.approx(float(terms), rel=1e-5)
    assert float(logs["kl_bits_per_dim"]) > 0
