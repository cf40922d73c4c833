"""Speed of the densities against the naive form of the same network: training, scoring, sampling, in one run.

    python benchmarks/speed/likelihood_models.py [THREADS]

Every line is a ratio of two times taken one after the other on this machine, the least of a few repetitions each (of
sampling the median over rounds that alternate), so it says more than either time alone; with one thread it is the
processor's time, which a busy machine does not change.
The naive forms are checked to compute the same before they are timed:

* PixelCNN: full-size masked kernels, float32, no channels_last, no compiled step;
* Diagonal BiLSTM: the same weights, one pixel after another, gradient by autograd;
* sampling: the whole network once a pixel. All of its 784 steps cost the same, so a few of them are timed.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densitywatch.data.dataset import open_split
from densitywatch.models import pixelcnn, pixelrnn
from densitywatch.models.common.pixel_head import draw_from_table
from densitywatch.models.common.pixel_values import scale_images
from densitywatch.models.pixelcnn import gate
from densitywatch.models.storage import load_model_folder

SIZE = 28


def seconds(run: Callable[[], Any], repetitions: int = 3) -> float:
    """The least time of a few runs, after one that is not counted."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    run()
    times = []
    for _ in range(repetitions):
        started = clock()
        run()
        times.append(clock() - started)
    return min(times)


def images(n: int) -> Tensor:
    return torch.randint(0, 256, (n, 1, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def masked(x: Tensor, layer: nn.Conv2d, rows: int, columns: int, padding: tuple[int, int]) -> Tensor:
    """A cropped convolution as one over a full kernel whose last rows or columns a mask sets to zero."""
    weight = F.pad(layer.weight, (0, columns, 0, rows))
    mask = F.pad(torch.ones_like(layer.weight), (0, columns, 0, rows))
    return F.conv2d(x, weight * mask, layer.bias, padding=padding, dilation=layer.dilation)


def naive_features(model: pixelcnn.PixelCNN, x: Tensor) -> Tensor:
    """pixelcnn.PixelCNN.features with full-size masked kernels."""
    image = F.pad(scale_images(x, model.position.dtype), (0, 0, 0, 0, 0, 1), value=1.0)
    v = masked(image, model.first_vertical, 3, 0, (2, 1)) + model.position
    h = v + masked(image, model.first_horizontal, 0, 3, (0, 2))
    for layer in model.layers:
        d = layer.vertical.dilation[0]
        vertical = masked(v, layer.vertical, 1, 0, (d, d))
        horizontal = masked(h, layer.horizontal, 0, 1, (0, d)) + layer.vertical_to_horizontal(vertical)
        v, h = v + gate(vertical), h + layer.out(gate(horizontal))
    return F.elu(h)


def naive_scan(maps: Tensor, weight: Tensor, offsets: tuple[int, ...], *, diagonal: bool) -> Tensor:
    """lstm_scan.lstm_scan one pixel after another, with autograd's gradient."""
    directions, h, w, b, k4 = maps.shape
    zero = maps.new_zeros(b, k4 // 4)
    all_states = []
    for d in range(directions):
        states: dict[tuple[int, int], Tensor] = {}
        cells: dict[tuple[int, int], Tensor] = {}
        for r in range(h):
            for c in range(w):
                z = maps[d, r, c]
                for tap, offset in enumerate(offsets):
                    there = (r + offset, c - 1 - offset) if diagonal else (r - 1, c + offset)
                    if there in states:
                        z = z + states[there] @ weight[d, tap]
                i, f, o, g = z.chunk(4, 1)
                before = cells.get((r, c - 1) if diagonal else (r - 1, c), zero)
                cells[r, c] = torch.sigmoid(f) * before + torch.sigmoid(i) * torch.tanh(g)
                states[r, c] = torch.sigmoid(o) * torch.tanh(cells[r, c])
        all_states.append(torch.stack([torch.stack([states[r, c] for c in range(w)]) for r in range(h)]))
    return torch.stack(all_states)


def training_step(model: nn.Module, loss: Callable[[Tensor], Any], x: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        loss(x)[0].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


@torch.no_grad()
def naive_pixel(model: Any, x: Tensor) -> Tensor:
    """One of the naive sampler's 784 steps."""
    here = model.features(x)[:, :, :1, :1]
    table = model.head.table(here, x[:, :, :1, :1], 0)[:, :, 0, 0]
    return draw_from_table(table, torch.rand(len(x)))


def line(what: str, ours: float, naive: float, images_done: int, asked: float | None) -> None:
    target = "" if asked is None else f" (asked: {asked:.0f}x)"
    print(f"{what:58} {images_done / ours:10.1f} images/s {naive / ours:8.1f}x{target}", flush=True)


def pixelcnn_lines() -> None:
    torch.manual_seed(0)
    x = images(16)
    plain = pixelcnn.PixelCNN(pixelcnn.Settings(), channels=1, size=SIZE, classes=0)
    model = pixelcnn.PixelCNN(pixelcnn.Settings(), channels=1, size=SIZE, classes=0)
    model.load_state_dict(plain.state_dict())
    model = model.to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.allclose(naive_features(plain, x), model.features(x), atol=1e-4)

    def naive_loss(x: Tensor) -> tuple[Tensor]:
        return (-plain.head.log_prob(naive_features(plain, x), x).mean(),)

    def naive_score(x: Tensor) -> Tensor:
        return plain.head.log_prob(naive_features(plain, x), x).sum((1, 2, 3))

    naive = seconds(training_step(plain, naive_loss, x))
    fast = torch.compile(model.loss, dynamic=False)
    forms = {
        "": model.loss,
        ", compiled": fast,
        ", compiled, bfloat16": mixed(torch.compile(model.loss, dynamic=False)),
    }
    for form, loss in forms.items():
        asked = 2 if form.endswith("16") else None
        line(f"PixelCNN, training step, batch 16{form}", seconds(training_step(model, loss, x)), naive, 16, asked)

    with torch.no_grad():
        x = images(64)
        naive = seconds(lambda: naive_score(x))
        fast = torch.compile(model.log_prob, dynamic=False)
        forms = {"": model.log_prob, ", compiled": fast, ", compiled, bfloat16": mixed(fast)}
        for form, score in forms.items():
            asked = 2 if form.endswith("16") else None
            line(f"PixelCNN, scoring, batch 64{form}", seconds(lambda score=score: score(x)), naive, 64, asked)
    precision_line()


def mixed(function: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """`function` in bfloat16 where autocast thinks that right: convolutions yes, the head and the residuals no."""

    def run(x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return function(x)

    return run


@torch.no_grad()
def precision_line() -> None:
    """What bfloat16 does to the bits/dim of the trained model of this folder, where there is one."""
    folder, data = Path("models/pixelcnn"), Path("data/prepared")
    if not folder.exists() or not data.exists():
        print("bfloat16's effect on bits/dim: needs models/pixelcnn and data/prepared, see `make run`")
        return
    model: Any = load_model_folder(folder)
    x = torch.from_numpy(np.array(open_split(data, "validation").images[:512]))
    scale = -math.log(2) * x[0].numel()
    exact, rounded = ((score(x).double() / scale) for score in (model.log_prob, mixed(model.log_prob)))
    change = (rounded - exact).mean()
    print(f"bfloat16 moves bits/dim of {len(x)} validation images from {exact.mean():.4f} by {change:+.4f}")


def sampling_lines() -> None:
    torch.manual_seed(0)
    model = pixelcnn.PixelCNN(pixelcnn.Settings(), channels=1, size=SIZE, classes=0)
    for n, asked in ((1, 60), (16, 100), (256, 100)):
        sampling_line(f"PixelCNN, sampling, batch {n}", model, n, asked)


def pixelrnn_lines() -> None:
    x = images(8)
    for recurrence in ("row_lstm", "diagonal_bilstm"):
        torch.manual_seed(0)
        settings = pixelrnn.Settings(recurrence=recurrence, head="logistic_mixture")  # type: ignore[arg-type]
        model = pixelrnn.PixelRNN(settings, channels=1, size=SIZE, classes=0)
        start = {name: weight.clone() for name, weight in model.state_dict().items()}
        with torch.no_grad():
            by_line = model.features(x)
        ours = seconds(training_step(model, model.loss, x))
        model.load_state_dict(start)
        with mock.patch.object(pixelrnn, "lstm_scan", naive_scan):
            with torch.no_grad():
                assert torch.allclose(model.features(x), by_line, atol=1e-4)
            naive = seconds(training_step(model, model.loss, x), 1)
        line(f"PixelRNN {recurrence}, training step, batch 8", ours, naive, 8, 5)
        sampling_line(f"PixelRNN {recurrence}, sampling, batch 16", model, 16, 50)


def sampling_line(what: str, model: Any, n: int, asked: float) -> None:
    """Medians over rounds that alternate: a naive step takes milliseconds, and a machine's speed changes meanwhile."""
    x = torch.zeros(n, 1, SIZE, SIZE, dtype=torch.uint8)
    rounds = [
        (seconds(lambda: model.sample(n), 1), seconds(lambda: naive_pixel(model, x), 2))
        for _ in range(15 if n == 1 else 3)
    ]
    ours, naive = (statistics.median(times) for times in zip(*rounds, strict=True))
    line(what, ours, naive * SIZE * SIZE, n, asked)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; images/s of ours, and ours over naive")
    sampling_lines()
    pixelrnn_lines()
    pixelcnn_lines()
