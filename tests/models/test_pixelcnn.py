"""What is PixelCNN's own: each masked layer's view, and no blind spot."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from densitywatch.errors import DensitywatchError
from densitywatch.models.pixelcnn import GatedLayer, PixelCNN, RowContext, Settings, doubled
from densitywatch.models.storage import model_settings
from densitywatch.params import ModelBlock, TrainingParams

SIZE = 9


def seen_by(output: Tensor, i: int, j: int, source: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(output[0, :, i, j].sin().sum(), source, retain_graph=True, allow_unused=True)
    return torch.zeros(SIZE, SIZE).bool() if gradient is None else (gradient[0].abs().sum(0) > 0)


@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_a_gated_layers_vertical_stack_sees_its_row_and_above_and_its_horizontal_one_the_row_so_far(
    dilation: int,
) -> None:
    torch.manual_seed(0)
    layer = GatedLayer(4, dilation).double()
    v, h = (torch.randn(1, 4, SIZE, SIZE, dtype=torch.float64, requires_grad=True) for _ in range(2))
    v_out, h_out = layer(v, h)
    assert v_out.shape == h_out.shape == v.shape
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    for i, j in [(0, 0), (4, 4), (5, SIZE - 1), (SIZE - 1, 0)]:
        assert not seen_by(v_out, i, j, v)[rows > i].any()
        assert not seen_by(v_out, i, j, h).any()
        horizontal = seen_by(h_out, i, j, h)
        assert not horizontal[(rows != i) | (columns > j)].any()
        assert horizontal[i, j]
        assert not seen_by(h_out, i, j, v)[rows > i].any()


def test_there_is_no_blind_spot_before_a_pixel() -> None:
    torch.manual_seed(0)
    model = PixelCNN(Settings(channels=6, dilations=(1, 2, 1, 4, 1)), channels=1, size=SIZE, classes=0).double()
    x = (torch.rand(1, 1, SIZE, SIZE, dtype=torch.float64) * 255).requires_grad_()
    features = model.features(x)
    for i, j in [(4, 4), (SIZE - 1, SIZE - 1), (3, 0), (6, 2), (2, SIZE - 1)]:
        (gradient,) = torch.autograd.grad(features[0, :, i, j].sin().sum(), x, retain_graph=True)
        assert (gradient.flatten().abs() > 0).nonzero().flatten().tolist() == list(range(i * SIZE + j))


def test_the_border_is_told_from_a_pixel_of_the_middle_grey() -> None:
    # 127.5 scales to zero, which is also what padding gives: only the channel of ones tells them apart
    torch.manual_seed(0)
    model = PixelCNN(Settings(channels=6, dilations=(1,)), channels=1, size=SIZE, classes=0).double()
    features = model.features(torch.full((1, 1, SIZE, SIZE), 127.5, dtype=torch.float64))
    assert (features[0, :, 0, 0] - features[0, :, 4, 4]).abs().max() > 1e-3


@pytest.mark.parametrize("size", [8, 9])
def test_the_context_of_a_pair_of_rows_is_all_rows_above_the_pair_and_nothing_else(size: int) -> None:
    torch.manual_seed(0)
    context = RowContext(2, 5, size).double()
    image = torch.randn(1, 2, size, size, dtype=torch.float64, requires_grad=True)
    out = doubled(context(image), size)
    assert out.shape == (1, 5, size, size)
    for i, j in [(0, 0), (1, 3), (2, 0), (5, 4), (size - 1, size - 1)]:
        (gradient,) = torch.autograd.grad(out[0, :, i, j].sin().sum(), image, retain_graph=True)
        seen = gradient[0].abs().sum(0) > 0
        assert not seen[i // 2 * 2 :].any()
        assert seen[: i // 2 * 2].all()
    assert torch.equal(out[:, :, 0::2][:, :, : size // 2], out[:, :, 1::2])  # both rows of a pair
    for rows in (1, 3, 4, 7):
        assert torch.allclose(context(image[:, :, :rows]), context(image)[:, :, : (rows + 1) // 2], rtol=1e-12)


def test_a_conditional_model_asks_for_labels_by_name() -> None:
    model = PixelCNN(Settings(channels=4, dilations=(1,), conditional=True), channels=1, size=4, classes=3)
    with pytest.raises(ValueError, match="conditional on 3 labels"):
        model.log_prob_map(torch.zeros(1, 1, 4, 4, dtype=torch.uint8))


def conditional(**settings: float) -> PixelCNN:
    torch.manual_seed(0)
    fixed = Settings(channels=4, dilations=(1,), conditional=True, **settings)  # type: ignore[arg-type]
    return PixelCNN(fixed, channels=1, size=4, classes=3).double()


def test_the_loss_adds_the_labels_nats_by_bayes_rule_over_a_quarter_of_the_pixels() -> None:
    model, labels = conditional(label_weight=0.1), torch.tensor([2, 0])
    x = torch.randint(0, 256, (2, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    maps = torch.stack([model.log_prob_map(x, torch.full((2,), k)) for k in range(3)], 1)  # (B, classes, H, W)
    bits = -maps[[0, 1], labels].sum((1, 2)).mean() / (16 * torch.log(torch.tensor(2.0)).double())
    quarters = [maps[:, :, i::2, j::2].sum((2, 3)) for i in range(2) for j in range(2)]
    nats = [(part.logsumexp(1) - part[[0, 1], labels]).mean().item() for part in quarters]
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        loss, logged = model.loss(x, labels)
        assert logged["bits_per_dim"].item() == pytest.approx(bits.item())
        assert loss.item() == pytest.approx(bits.item() + 0.1 * logged["label_nats_of_a_quarter"].item())
        seen |= {k for k in range(4) if logged["label_nats_of_a_quarter"].item() == pytest.approx(nats[k])}
    assert seen == {0, 1, 2, 3}


def test_without_a_weight_the_loss_is_the_likelihood_alone() -> None:
    model, labels = conditional(label_weight=0.0), torch.tensor([2, 0])
    x = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    loss, logged = model.loss(x, labels)
    assert list(logged) == ["bits_per_dim"]
    assert loss.item() == pytest.approx(-model.log_prob(x, labels).mean().item() / (16 * 0.6931471805599453))


def test_labels_in_parts_are_the_labels_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PixelCNN, "ROWS_AT_ONCE", 6)  # 2 images under 3 labels
    x = torch.randint(0, 256, (5, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    model = conditional()
    assert model.IMAGES_AT_ONCE == 2
    assert torch.allclose(model.log_prob_by_label(x), model.every_label(x), rtol=1e-12)


@pytest.mark.parametrize(
    ("classes", "size", "images"),
    [(0, 32, 25), (10, 28, 25), (100, 32, 2), (300, 32, 1), (10, 64, 6), (100, 256, 1), (0, 64, 6)],
)
def test_images_under_all_labels_are_at_most_250_rows_of_32_pixels_a_side(classes: int, size: int, images: int) -> None:
    settings = Settings(channels=2, dilations=(1,), context_channels=2, conditional=True)
    at_once = PixelCNN(settings, channels=1, size=size, classes=classes).IMAGES_AT_ONCE
    assert at_once == images


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chanels": 8}, "chanels: unknown key"),
        ({"dilations": []}, "dilations"),
        ({"colour_order": "cmy"}, "colour_order"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, object], message: str) -> None:
    block = ModelBlock(
        kind="pixelcnn", settings=settings, training=TrainingParams(steps=1, batch_size=1, learning_rate=1e-3)
    )
    with pytest.raises(DensitywatchError, match=message):
        model_settings(block)
