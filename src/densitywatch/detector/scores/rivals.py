"""Member scores that train a small network of their own, read the VAE, or take long; scores.py says what a member is.

None is in the detector by default (docs/lab/detector.md); the benchmark measures all of them. The judge of declared
transformations joins the detector when params declare some.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from densitywatch.data.reading import LARGEST_BY_DEFAULT, size_of
from densitywatch.detector.feature_cache import Images, Readings
from densitywatch.detector.gaussian_mixture import fit_mixture, mixture_nll
from densitywatch.detector.member import Fitted, Floats, Given, member
from densitywatch.detector.scores import networks


def _small(seen: Readings) -> Images:
    """What a score's own small density learns from: at most 32 pixels a side, since it is there to be quick."""
    return np.asarray(seen.at(min(seen.size, LARGEST_BY_DEFAULT))[:])


def _fit_local(given: Given) -> Fitted:
    return networks.fit_small_density(
        _small(given.train), channels=16, dilations=(1,), steps=given.steps, mutation=0.0, seed=given.seed
    )


@member("its parts are usual but not how they go together", fit=_fit_local)
def full_minus_local(seen: Readings, fitted: Fitted) -> Floats:
    """Ratio against a PixelCNN that sees only a few pixels around (Zhang et al. 2021, "On the out-of-distribution
    generalization of probabilistic image modelling"; Schirrmeister et al. 2020)."""
    local = networks.small_density(fitted)
    return seen.nll("pixelcnn") - seen.by_batch(("local", id(fitted)), lambda x: -local.log_prob(x), local.size)


def _fit_background(given: Given) -> Fitted:
    return networks.fit_small_density(
        _small(given.train), channels=16, dilations=(1, 2), steps=given.steps, mutation=0.15, seed=given.seed
    )


@member("what it shows is unusual, whatever its background", fit=_fit_background)
def likelihood_ratio(seen: Readings, fitted: Fitted) -> Floats:
    """Ratio against a density trained on images with random pixels replaced (Ren et al. 2019, "Likelihood ratios for
    out-of-distribution detection")."""
    background = networks.small_density(fitted)
    return seen.nll("pixelcnn") - seen.by_batch(
        ("background", id(fitted)), lambda x: -background.log_prob(x), background.size
    )


@member("the autoencoder cannot reproduce it", reads=("vae",))
def vae_reconstruction(seen: Readings, fitted: Fitted) -> Floats:
    """Minus log p(x | z) at the posterior's mean, nats (An & Cho 2015, "Variational autoencoder based anomaly detection
    using reconstruction probability")."""
    return seen.vae_terms("vae")[:, 0]


@member("its place among the learned factors is far from the usual", reads=("vae",))
def vae_kl(seen: Readings, fitted: Fitted) -> Floats:
    """KL(q(z|x) || p(z)), nats, the ELBO's other term (Kingma & Welling 2014)."""
    return seen.vae_terms("vae")[:, 1]


@member("the autoencoder had to bend to explain it", reads=("vae",), slow=True)
def likelihood_regret(seen: Readings, fitted: Fitted) -> Floats:
    """How much the ELBO gains when the posterior is fitted to this one image (Xiao et al. 2020, "Likelihood regret"):
    20 steps of Adam on its mean and variance, one fixed noise."""
    vae = seen.models["vae"]

    def regret(x: Tensor) -> Tensor:
        from densitywatch.models.vae import kl_to_standard_normal

        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone()
            mean, log_variance = (value.detach().clone().requires_grad_() for value in vae.posterior(x))
            noise = torch.randn(mean.shape[1], generator=torch.Generator().manual_seed(0))  # the same for every image
            optimizer = torch.optim.Adam([mean, log_variance], lr=0.05)
            first = elbo = torch.zeros(len(x))
            for step in range(21):
                z = mean + (0.5 * log_variance).exp() * noise
                elbo = vae.conditional_log_prob(x, z) - kl_to_standard_normal(mean, log_variance)
                first = elbo.detach() if step == 0 else first
                optimizer.zero_grad()
                (-elbo.sum()).backward(inputs=[mean, log_variance])
                optimizer.step()
            return elbo.detach() - first

    return seen.by_batch("regret", regret, size_of(vae, seen.size))


def _statistics(seen: Readings) -> Floats:
    surprise, expected, variance = (part.sum((1, 2)) for part in seen.surprise_statistics("pixelcnn"))
    return np.column_stack([surprise, expected, np.sqrt(variance), seen.webp_nats, seen.vae_terms("vae")])


def _fit_statistics(given: Given) -> Fitted:
    x = _statistics(given.validation)
    scale = x.std(0) + 1e-9
    return {"spread": scale, **fit_mixture(x / scale, dimensions=6, components=10, seed=given.seed)}


@member(
    "the models' figures for it do not go together as they do for normal images",
    fit=_fit_statistics,
    reads=("pixelcnn", "vae"),
)
def model_statistics(seen: Readings, fitted: Fitted) -> Floats:
    """Surprise, expected surprise, its spread, WebP bits and the ELBO's terms under a Gaussian mixture (Morningstar et
    al. 2021, "Density of states estimation for out of distribution detection", DoSE)."""
    return mixture_nll(_statistics(seen) / fitted["spread"], fitted)


def _fit_ratio(given: Given) -> Fitted:
    return {"declared": np.array([list(networks.TRANSFORMATIONS).index(word) for word in given.declared])}


@member("it is more probable turned, mirrored or inverted than as it is", fit=_fit_ratio, declared=True, slow=True)
def transformation_ratio(seen: Readings, fitted: Fitted) -> Floats:
    """log mean over declared T of p(Tx), minus log p(x), nats."""
    words = list(networks.TRANSFORMATIONS)
    declared = tuple(words[int(i)] for i in fitted["declared"])
    model = seen.models["pixelcnn"]
    others = [
        Readings(changed, seen.models, seen.batch_size).by_batch("log_prob", model.log_prob)
        for changed in networks.transformed(seen.at(size_of(model, seen.size))[:], declared)
    ]
    stacked = np.stack(others)
    top = stacked.max(0)
    return np.asarray(seen.nll("pixelcnn") + top + np.log(np.exp(stacked - top).mean(0)))


def _fit_judge(given: Given) -> Fitted:
    return networks.fit_judge(given.all_train, given.declared, steps=given.declared_steps, seed=given.seed)


@member("it looks turned, mirrored or inverted", fit=_fit_judge, reads=(), declared=True)
def transformation_judge(seen: Readings, fitted: Fitted) -> Floats:
    """A small network trained to tell training images from their declared transformations, log odds (self-supervised
    detection as in Golan & El-Yaniv 2018, with the user's own transformations)."""
    model = networks.judge(fitted)
    return seen.by_batch(("judge", id(fitted)), model, min(seen.size, LARGEST_BY_DEFAULT))
