"""The pyramid is a density: a lossless split, no way back in its order, and all images together have probability 1."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from densitywatch.errors import ModelError
from densitywatch.models import pixelcnn
from densitywatch.models.difference_network import (
    GUESSES,
    cumulated_differences,
    difference_log_prob,
    difference_moments,
    positions,
)
from densitywatch.models.lossless_split import GROUPS, LARGEST, Split, grouped, plan, take_apart, ungrouped
from densitywatch.models.pixelcnn import PixelCNN
from densitywatch.models.pixelcnn_pyramid import PixelCNNPyramid, Settings, coverage, window_starts
from densitywatch.params import TrainingParams
from densitywatch.training.optimizers import make_optimizers

SMALL: dict[str, Any] = {
    "coarsest": 4,
    "coarse_channels": 4,
    "coarse_dilations": (1,),
    "context_channels": 5,
    "context_layers": 1,
    "channels": 3,
    "components": 3,
}


def shaken(module: Any) -> Any:
    """In float64, with weights that are not zero: zeros at the start would hide a wrong dependence."""
    module = module.double().eval()
    for parameter in module.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return module


def model_of(channels: int = 1, *, size: int = 8, **settings: Any) -> Any:
    torch.manual_seed(11)
    return shaken(PixelCNNPyramid(Settings(**{**SMALL, **settings}), channels=channels, size=size, classes=0))


def network_of(channels: int, **settings: Any) -> Any:
    torch.manual_seed(11)
    model = PixelCNNPyramid(Settings(**{**SMALL, **settings}), channels=channels, size=8, classes=0)
    return shaken(model.network(Split(0, 3, 8)))


def images(n: int, channels: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


# the distribution of a difference


def test_the_probabilities_of_the_reachable_differences_sum_to_one_and_others_have_none() -> None:
    generator = torch.Generator().manual_seed(0)
    for reach in (0, 1, 2, 17, 254, 255):
        parameters = (
            torch.randn(3, 4, 1, generator=generator, dtype=torch.float64)
            * torch.tensor([1.0, 40.0, 2.0])[:, None, None]
        )
        d = torch.arange(-reach, reach + 1)
        nats = difference_log_prob(d, torch.full_like(d, reach), parameters.expand(-1, -1, len(d)))
        assert nats.exp().sum().item() == pytest.approx(1.0, abs=1e-12)
        edges = cumulated_differences(torch.tensor([reach]), parameters)[0]
        table = torch.diff(edges, prepend=edges.new_zeros(1), append=edges.new_ones(1))
        assert torch.allclose(table[LARGEST - reach : LARGEST + reach + 1], nats.exp(), atol=1e-12)
        assert table[: LARGEST - reach].abs().sum() == table[LARGEST + reach + 1 :].abs().sum() == 0


def test_far_out_and_very_narrow_differences_have_finite_surprise() -> None:
    d, reach = torch.tensor([0, 255, -255, 3]), torch.tensor([0, 255, 255, 200])
    for scale in (-2.3, 10.0):
        parameters = torch.tensor([0.0, 500.0, scale]).view(3, 1, 1).expand(-1, -1, 4)
        assert difference_log_prob(d, reach, parameters).isfinite().all()


# how much surprise a difference expects


def exact_moments(reach: Tensor, parameters: Tensor) -> Tensor:
    """Mean and variance of -log p, (2, N), by summing over all values."""
    below = cumulated_differences(reach, parameters.double())
    p = torch.diff(below, dim=1, prepend=below.new_zeros(len(below), 1), append=below.new_ones(len(below), 1))
    log_p = p.clamp(min=1e-30).log()
    mean = -(p * log_p).sum(1)
    return torch.stack([mean, (p * log_p.square()).sum(1) - mean.square()])


def mixtures(n: int, narrowest: float, widest: float, components: int = 5) -> tuple[Tensor, Tensor]:
    """Reaches, and parameters with log-scales within these limits, of n differences."""
    generator = torch.Generator().manual_seed(3)
    reach = torch.randint(0, 256, (n,), generator=generator)
    means = torch.randn(components, n, generator=generator) * 40.0 * torch.rand(components, n, generator=generator) ** 2
    log_scales = torch.empty(components, n).uniform_(narrowest, widest, generator=generator)
    return reach, torch.stack([torch.randn(components, n, generator=generator) * 2.0, means, log_scales])


@pytest.mark.parametrize(("narrowest", "widest"), [(-2.3, 4.0), (-2.3, 0.5), (0.5, 4.0), (-2.3, -1.5)])
def test_expected_surprise_and_its_variance_are_those_of_all_values(narrowest: float, widest: float) -> None:
    reach, parameters = mixtures(5000, narrowest, widest)
    missed = difference_moments(reach, parameters) - exact_moments(reach, parameters)
    bias, error = missed.mean(1).abs(), missed.square().mean(1).sqrt()
    assert bias[0] < 0.02
    assert bias[1] < 0.04
    assert error[0] < 0.03
    assert error[1] < 0.06


def test_what_cannot_differ_expects_nothing_and_a_wide_logistic_expects_its_ends() -> None:
    _, parameters = mixtures(500, -2.3, 4.0)
    assert (difference_moments(torch.zeros(500, dtype=torch.long), parameters) == 0).all()
    reach = torch.tensor([1, 10, 255])
    parameters = torch.tensor([0.0, 0.0, 10.0]).view(3, 1, 1).expand(-1, -1, 3)  # half of p at each end
    exact = exact_moments(reach, parameters)
    assert torch.allclose(difference_moments(reach, parameters).double(), exact, atol=2e-3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (13, 9)])
def test_the_surprise_of_all_levels_is_that_of_the_image_and_an_odd_end_expects_none(
    channels: int, height: int, width: int
) -> None:
    model, x = model_of(channels), images(3, channels, height, width)
    coarsest, splits = model.surprise(x)
    nats = model.coarse_log_prob(coarsest).sum((1, 2)) - sum(found[0].sum((1, 2)) for _, found in splits)
    assert torch.allclose(nats, model.log_prob(x))
    for split, found in splits:
        assert (found > -1e-6).all()
        if split.length % 2:
            assert (found.narrow(split.dim, -1, 1).abs() < 1e-6).all()
    # each factor against the sums over all values
    _, parts = take_apart(x, model.splits(height, width))
    split, (means, d) = model.splits(height, width)[0], parts[0]
    network, where = model.network(split), positions(split, (height, width), means.shape[2:])
    _, reaches, parameters = network.distributions(means, d, split.reach(means), where)
    exact = exact_moments(reaches.flatten(), parameters.flatten(2)).view(2, *reaches.shape).sum(3, keepdim=True)
    for mine, true in zip(splits[0][1][1:], exact, strict=True):
        assert torch.allclose(mine, ungrouped(true, *d.shape[2:]).squeeze(1), atol=0.15 * channels)


@pytest.mark.parametrize("channels", [1, 3])
def test_surplus_surprise_is_zero_on_average_under_the_model_itself(channels: int) -> None:
    model = model_of(channels, size=16)
    with torch.no_grad():
        _, splits = model.surprise(model.sample(60, generator=seeded()))
    for _, found in splits:
        surprise, expected, variance = found.sum((2, 3))
        z = (surprise - expected) / variance.sqrt()
        assert abs(z.mean()) < 4 / math.sqrt(60)
        assert 0.6 < z.std() < 1.4


# the order


@pytest.mark.parametrize("channels", [1, 3])
def test_a_group_sees_the_groups_before_it_on_all_sides_and_no_other(channels: int) -> None:
    network = network_of(channels)
    means = images(1, channels, 10, 10)
    seen = network.see(means, positions(Split(0, 3, 20), (10, 20), (10, 10)))
    d = (torch.rand(1, 4, channels, 5, 5, dtype=torch.float64) * 9).requires_grad_()
    features, guesses = network.features(seen, d)
    for g in range(4):
        for found in (features.unflatten(1, (4, -1))[0, g, ..., 2, 2], guesses[0, g, ..., 2, 2]):
            (gradient,) = torch.autograd.grad(found.sin().sum(), d, retain_graph=True)
            moved = gradient[0].abs().sum((1,)) > 0  # (4, 5, 5)
            assert not moved[g:].any()
            assert moved[:g, 1:4, 1:4].all()


def test_a_group_has_the_same_features_and_guesses_alone_as_among_all() -> None:
    network, means = network_of(3), images(2, 3, 8, 6)
    seen = network.see(means, positions(Split(0, 3, 12), (8, 12), (8, 6)))
    d = torch.rand(2, 4, 3, 4, 3, dtype=torch.float64) * 9
    features, guesses = network.features(seen, d)
    parameters = network.head(features, guesses, d)
    for g in range(4):
        alone = network.features(seen, d, g)
        assert torch.allclose(alone[0], features.unflatten(1, (4, -1))[:, g])
        assert torch.allclose(alone[1], guesses[:, g : g + 1])
        assert torch.allclose(network.head(*alone, d[:, g : g + 1], g), parameters[:, :, :, g : g + 1])


def test_a_guess_is_linear_in_the_relief_of_the_means_and_does_not_move_with_their_brightness() -> None:
    network, means, d = network_of(3), images(1, 3, 8, 8) // 4, torch.rand(1, 4, 3, 4, 4, dtype=torch.float64) * 9
    where = positions(Split(0, 3, 16), (8, 16), (8, 8))
    (_, once), (_, twice), (_, brighter) = (
        network.features(network.see(m, where), k * d) for m, k in ((means, 1), (2 * means, 2), (means + 90, 1))
    )
    assert torch.allclose(twice, 2 * once)
    assert torch.allclose(brighter, once)


def test_a_colour_sees_the_colours_before_it_at_its_own_place_and_no_other() -> None:
    network = network_of(3)
    features, guesses = torch.randn(1, 12, 2, 2).double(), torch.randn(1, 4, 3, GUESSES, 2, 2).double() * 9
    d = (torch.rand(1, 4, 3, 2, 2, dtype=torch.float64) * 9).requires_grad_()
    parameters = network.head(features, guesses, d)  # (3, K, 1, 4, 3, 2, 2)
    for g in range(4):
        for k in range(3):
            (gradient,) = torch.autograd.grad(
                parameters[:, :, 0, g, k, 0, 1].sin().sum(), d, retain_graph=True, allow_unused=True
            )
            moved = gradient[0].abs() > 0
            expected = torch.zeros_like(moved)
            expected[g, :k, 0, 1] = True
            assert torch.equal(moved, expected)


def test_a_split_sees_all_means_around_it() -> None:
    network = network_of(1)
    means = torch.rand(1, 1, 12, 12, dtype=torch.float64).mul(255).requires_grad_()
    seen, _ = network.see(means, positions(Split(0, 3, 24), (12, 24), (12, 12)))
    (gradient,) = torch.autograd.grad(seen[0, :, 3, 3].sin().sum(), means)
    assert (gradient[0, 0, 2:12, 2:12].abs() > 0).all()


def test_a_pixel_moves_the_surprise_of_a_coarser_factor_only_through_the_means() -> None:
    # +2 and -2 within a pair: its mean and all coarser factors stay
    model, x = model_of(size=8), images(1, 1, 8, 8).clamp(10, 240)
    changed = x.clone()
    changed[0, 0, 3, 4] += 2
    changed[0, 0, 3, 5] -= 2
    with torch.no_grad():
        before, after = model.factors(x), model.factors(changed)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1][0][1], after[1][0][1])
    assert torch.equal(before[1][1][1], after[1][1][1])


# the density


@pytest.mark.slow
def test_all_images_together_have_probability_one() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    a, b = torch.meshgrid(values, values, indexing="ij")
    pairs = torch.stack([a.flatten(), b.flatten()], 1)
    model = model_of(size=2, coarsest=1)
    with torch.no_grad():
        for shape in ((1, 2), (2, 1)):  # one split does something, the other nothing
            parts = pairs.view(-1, 1, *shape).split(1 << 13)
            total = sum(model.log_prob(part).exp().sum().item() for part in parts)
            assert total == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 10), (3, 9)])
def test_a_walk_with_known_values_meets_the_probabilities_of_log_prob(channels: int, height: int, width: int) -> None:
    # of low contrast: a probability below 1e-16 is lost between two cumulated ones
    model, x = model_of(channels), images(2, channels, height, width) // 8 + 100
    log_prob = torch.zeros((), dtype=torch.float64)

    def choose(cumulated: Tensor, known: Tensor) -> Tensor:
        n = len(cumulated)
        edges = torch.cat([torch.zeros(n, 1), cumulated, torch.ones(n, 1)], 1)
        log_prob.add_(edges.diff(dim=1).gather(1, known.unsqueeze(1)).log().sum())
        return known

    assert torch.equal(model.walk(2, choose, height, width, x, height), x)
    with torch.no_grad():
        assert log_prob.item() == pytest.approx(model.log_prob(x).sum().item(), rel=1e-4)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 13), (2, 31)])
def test_the_map_has_the_images_size_and_sums_to_the_likelihood(height: int, width: int) -> None:
    model, x = model_of(3), images(2, 3, height, width)
    with torch.no_grad():
        nats = model.log_prob_map(x)
        assert nats.shape == (2, height, width)
        assert torch.allclose(nats.sum((1, 2)), model.log_prob(x), rtol=1e-10)


@pytest.mark.parametrize("shared", [False, True])
def test_a_model_of_one_size_scores_others_and_larger_ones_take_its_last_networks(shared: bool) -> None:
    model = model_of(size=16, shared=shared)
    assert len(model.details) == (2 if shared else 4)
    with torch.no_grad():
        for height, width in [(3, 4), (8, 8), (16, 11), (40, 33)]:
            assert model.log_prob(images(2, 1, height, width)).isfinite().all()
            assert model.encode(images(2, 1, height, width)).ndim == 2
    assert model.network(Split(3, 3, 40)) is model.details[0 if shared else 2]
    assert model.network(Split(0, 2, 40)) is model.details[1]


def test_a_model_of_small_images_is_the_pixelcnn_and_says_that_it_has_no_networks_for_larger_ones() -> None:
    model, x = model_of(size=4), images(2, 1, 4, 4)
    with torch.no_grad():
        assert torch.equal(model.log_prob(x), model.coarse.log_prob(x))
    with pytest.raises(ModelError, match="no networks for larger images than 4, not 8 x 8"):
        model.log_prob(images(1, 1, 8, 8))


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32)])
def test_a_training_on_small_images_by_default_settings_is_that_of_the_pixelcnn(channels: int, size: int) -> None:
    x = images(4, channels, size, size)
    kind: dict[str, int] = {"channels": channels, "size": size, "classes": 0}
    losses, weights = [], []
    for model_type, settings in ((PixelCNN, pixelcnn.Settings()), (PixelCNNPyramid, Settings())):
        torch.manual_seed(0)
        model: Any = model_type(settings, **kind)
        optimizers = make_optimizers(model, TrainingParams(steps=2, batch_size=4, optimizer="muon", learning_rate=3e-3))
        for _ in range(2):
            loss, _ = model.loss(x)
            loss.backward()
            for optimizer in optimizers.values():
                optimizer.step()
                optimizer.zero_grad()
        losses.append(loss.item())
        weights.append(model.state_dict())
    assert losses[0] == losses[1]
    cnn, pyramid = weights
    assert pyramid.keys() == {f"coarse.{name}" for name in cnn}
    assert all(torch.equal(pyramid[f"coarse.{name}"], value) for name, value in cnn.items())


# positions and training


def test_a_window_is_told_its_true_coordinates() -> None:
    split = Split(1, 3, 20)
    whole = positions(split, (20, 40), (10, 10))
    assert torch.equal(positions(split, (20, 40), (4, 6), top=2, left=4), whole[:, 1:3, 2:5])


@pytest.mark.parametrize("told", [True, False])
def test_positions_can_be_switched_off(told: bool) -> None:
    network, means = network_of(1, positions=told), images(1, 1, 8, 8)
    here, there = (positions(Split(0, 3, 16), (8, 16), (8, 8), top=0, left=left) for left in (0, 6))
    with torch.no_grad():
        assert torch.equal(network.see(means, here)[0], network.see(means, there)[0]) != told


@pytest.mark.parametrize("crop", [None, 8, 4])
def test_the_training_loss_is_the_likelihood_or_an_estimate_from_windows(crop: int | None) -> None:
    model, x = model_of(3, size=8, crop=crop), images(2, 3, 8, 8) // 32 + 100
    exact = -model.log_prob(x).mean().item() / (x[0].numel() * math.log(2))
    assert model.loss(x)[0].item() == pytest.approx(exact, rel=1e-9)  # not in training
    model.train()
    losses = []
    for seed in range(8):
        torch.manual_seed(seed)
        loss, logged = model.loss(x)
        assert logged["bits_per_dim"].item() == loss.item()
        losses.append(loss.item())
    if crop == 4:
        assert len(set(losses)) > 1
        assert sum(losses) / 8 == pytest.approx(exact, rel=0.25)  # a window's border is not the image's
    else:
        assert losses == pytest.approx([exact] * 8, rel=1e-9)


@pytest.mark.parametrize("crop", [4, 5])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 9), (13, 22), (6, 11)])
def test_the_mean_over_all_windows_is_the_sum_over_all_places(
    height: int, width: int, crop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, split = model_of(3, crop=crop), Split(0, 3, 2 * width)
    means, d = images(2, 3, height, width).int(), images(2, 3, height, width).int() - 128
    # nats of a place that see no other place: what a window's border hides is another matter
    monkeypatch.setattr(model.network(split), "log_prob", lambda means, d, reach, where: (d * means).double().sum(1))
    ends: list[int] = []

    def estimate(*drawn: int) -> Tensor:
        numbers = iter(drawn)

        def randint(end: int, size: tuple[int, ...]) -> Tensor:
            ends.append(end)
            return torch.tensor(next(numbers))

        with monkeypatch.context() as patched:
            patched.setattr(torch, "randint", randint)
            return model.estimate(split, means, d, (height, 2 * width), crop)

    estimate(0, 0)
    rows, columns = ends[:2]
    found = torch.stack([estimate(i, j) for i in range(rows) for j in range(columns)])
    assert torch.allclose(found.mean(0), (d * means).double().sum((1, 2, 3)), rtol=1e-12)


@pytest.mark.parametrize("side", [64, 65, 75, 128, 129, 256])
def test_every_place_is_in_many_windows(side: int) -> None:
    assert all(start % 2 == 0 for start in window_starts(side, 64))  # else a place would change its group
    assert coverage(side, 64).min() > 0.2


@pytest.mark.slow
def test_a_short_training_lowers_the_loss_and_moves_every_weight() -> None:
    model = model_of(3, size=8).float().train()
    x = images(8, 3, 8, 8) // 4
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        loss, _ = model.loss(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2
    assert [name for name, value in model.named_parameters() if torch.equal(value, before[name])] == []


def test_muon_leaves_the_layers_that_read_pixels_or_write_parameters_to_adamw() -> None:
    model = model_of(3)
    optional = {"coarse.context.first", "coarse.head.colours"}
    assert set(model.OUTER_LAYERS) - optional <= set(dict(model.named_modules()))
    assert {"coarse.head.out", "details.0.first", "details.1.known", "details.1.head.out"} <= set(model.OUTER_LAYERS)
    assert {"details.0.guesses.of_means", "details.1.guesses.of_known"} <= set(model.OUTER_LAYERS)
    assert "details.0.layers.0.inner" not in model.OUTER_LAYERS


# samples


@torch.no_grad()
def naive_sample(model: Any, n: int, height: int, width: int) -> Tensor:
    """The reference: the whole network of a split for each group and each colour."""
    splits, generator = plan(height, width, model.coarsest), seeded()
    side = model.coarsest
    image = torch.zeros(n, model.channels, side, side, dtype=torch.uint8)
    for i in range(side):
        for j in range(side):
            features = model.coarse.features(image)[:, :, i : i + 1, j : j + 1]
            for k, colour in enumerate(model.coarse.head.sequence):
                table = model.coarse.head.table(features, image[:, :, i : i + 1, j : j + 1], k)[:, :, 0, 0]
                number = torch.rand(n, 1, generator=generator).double()
                image[:, colour, i, j] = (table.exp().cumsum(1)[:, :255] <= number).sum(1).to(torch.uint8)
    image = image.int()
    for split in reversed(splits):
        network, reach = model.network(split), split.reach(image)
        where = positions(split, (height, width), image.shape[2:])
        d = torch.zeros_like(grouped(image))
        for g in range(len(GROUPS)):
            for k, colour in enumerate(network.sequence):
                parameters = network.head(*network.features(network.see(image, where), d), d)[:, :, :, g, k]
                r = grouped(reach)[:, g, colour]
                edges = cumulated_differences(r.flatten(), parameters.flatten(2))
                number = torch.rand(len(edges), 1, generator=generator).double()
                d[:, g, k] = (edges <= number).sum(1).view(r.shape) - LARGEST
        colours = torch.tensor(network.sequence).argsort()
        image = split.join(image, ungrouped(d, *image.shape[2:])[:, colours])
    return image.to(torch.uint8)


@pytest.mark.parametrize(("channels", "order"), [(1, "rgb"), (3, "rgb"), (3, "gbr")])
@pytest.mark.parametrize(("size", "coarsest"), [(16, 4), (5, 3)])
def test_the_same_generator_gives_the_naive_loops_images_bit_for_bit(
    channels: int, order: str, size: int, coarsest: int
) -> None:
    model = model_of(channels, size=size, colour_order=order, coarsest=coarsest)
    cached = model.sample(2, generator=seeded())
    assert torch.equal(cached, naive_sample(model, 2, size, size))
    assert cached.unique().numel() > 10


def test_samples_follow_the_models_own_distribution() -> None:
    # by the model's entropy: a factor drawn from another distribution would have another mean surprise
    model = model_of(size=4, coarsest=2)
    entropy, surprise = torch.zeros(600), torch.zeros(600)

    def choose(cumulated: Tensor, known: Tensor) -> Tensor:
        n = len(cumulated)
        table = torch.cat([torch.zeros(n, 1), cumulated, torch.ones(n, 1)], 1).diff(dim=1).clamp(min=1e-300)
        entropy.add_(-(table * table.log()).sum(1).view(600, -1).sum(1))
        chosen = torch.searchsorted(cumulated, torch.rand(n, 1, generator=generator).double(), right=True).squeeze(1)
        surprise.sub_(table.gather(1, chosen.unsqueeze(1)).log().view(600, -1).sum(1))
        return chosen

    generator = seeded()
    x = model.walk(600, choose, 4, 4)
    with torch.no_grad():
        assert torch.allclose(-model.log_prob(x), surprise.double(), rtol=1e-4)
    difference = surprise - entropy
    assert difference.mean().abs().item() < 4 * difference.std().item() / 600**0.5


def test_given_rows_are_kept_and_the_numbers_of_the_rest_do_not_move() -> None:
    model, given = model_of(3, size=16), images(2, 3, 16, 16)
    for rows in (0, 4, 8, 16):
        x = model.sample(2, generator=seeded(), given=given, rows=rows)
        assert torch.equal(x[:, :, :rows], given[:, :, :rows])
    own = model.sample(2, generator=seeded())
    assert torch.equal(model.sample(2, generator=seeded(), given=own, rows=8), own)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"n": 0}, "at least one"),
        ({"n": 1, "labels": torch.tensor([0])}, "a model without labels"),
        ({"n": 1, "rows": 3}, "no image"),
        ({"n": 1, "given": torch.zeros(1, 1, 16, 16, dtype=torch.uint8), "rows": 6}, "keep a multiple of 4"),
        ({"n": 1, "given": torch.zeros(1, 1, 8, 8, dtype=torch.uint8), "rows": 4}, "this model's size"),
    ],
)
def test_a_wish_that_does_not_fit_the_model_is_refused_in_one_sentence(request_: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        model_of(size=16).sample(**request_)


def test_images_can_be_used_in_training_afterwards() -> None:
    model = model_of(size=8)
    loss, _ = model.loss(model.sample(2))
    loss.backward()
