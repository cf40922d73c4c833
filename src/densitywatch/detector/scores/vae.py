"""Scores that read the VAE."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from densitywatch.arrays import Arrays, Floats
from densitywatch.data.reading import size_of
from densitywatch.detector.feature_cache import FeatureCache
from densitywatch.detector.gaussian_mixture import fit_mixture, mixture_nll
from densitywatch.detector.member import FittingData, member
from densitywatch.models.vae import kl_to_standard_normal


@member("the autoencoder cannot reproduce it", reads=("vae",))
def vae_reconstruction(features: FeatureCache, fitted: Arrays) -> Floats:
    """Minus log p(x | z) at the posterior's mean, nats (An & Cho 2015, "Variational autoencoder based anomaly detection
    using reconstruction probability")."""
    return features.vae_terms("vae")[:, 0]


@member("its learned factors are far from the usual ones", reads=("vae",))
def vae_kl(features: FeatureCache, fitted: Arrays) -> Floats:
    """KL(q(z|x) || p(z)), nats, the ELBO's other term (Kingma & Welling 2014)."""
    return features.vae_terms("vae")[:, 1]


@member("the autoencoder explains it much better once it is fitted to this one image", reads=("vae",), slow=True)
def likelihood_regret(features: FeatureCache, fitted: Arrays) -> Floats:
    """How much the ELBO gains when the posterior is fitted to this one image (Xiao et al. 2020, "Likelihood regret"):
    20 steps of Adam on its mean and variance, one fixed noise."""
    vae = features.models["vae"]

    def regret(x: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone()
            # start at the encoder's q(z|x); the decoder's weights stay as they are
            mean, log_variance = (value.detach().clone().requires_grad_() for value in vae.posterior(x))
            noise = torch.randn(mean.shape[1], generator=torch.Generator().manual_seed(0))  # the same for every image
            optimizer = torch.optim.Adam([mean, log_variance], lr=0.05)
            first = elbo = torch.zeros(len(x))
            for step in range(21):  # the ELBO before the first step and after each of 20
                # z = mean + exp(log_variance / 2) * noise; ELBO = log p(x|z) - KL(q || N(0, 1))
                z = mean + (0.5 * log_variance).exp() * noise
                elbo = vae.conditional_log_prob(x, z) - kl_to_standard_normal(mean, log_variance)
                first = elbo.detach() if step == 0 else first
                optimizer.zero_grad()
                (-elbo.sum()).backward(inputs=[mean, log_variance])
                optimizer.step()
            return elbo.detach() - first

    return features.by_batch("regret", regret, size_of(vae, features.size))


def _statistics(features: FeatureCache) -> Floats:
    """Surprise, expected surprise, its standard deviation, WebP length and the ELBO's two terms, nats, (B, 6)."""
    surprise, expected, variance = (part.sum((1, 2)) for part in features.surprise_statistics("pixelcnn"))
    return np.column_stack([surprise, expected, np.sqrt(variance), features.webp_nats, features.vae_terms("vae")])


def _fit_statistics(data: FittingData) -> Arrays:
    x = _statistics(data.validation)
    scale = x.std(0) + 1e-9
    return {"spread": scale, **fit_mixture(x / scale, dimensions=6, components=10, seed=data.seed)}


@member(
    "the models' figures for it do not go together as they do for normal images",
    fit=_fit_statistics,
    reads=("pixelcnn", "vae"),
)
def model_statistics(features: FeatureCache, fitted: Arrays) -> Floats:
    """Surprise, expected surprise, its spread, WebP bits and the ELBO's terms under a Gaussian mixture (Morningstar et
    al. 2021, "Density of states estimation for out of distribution detection", DoSE)."""
    return mixture_nll(_statistics(features) / fitted["spread"], fitted)
