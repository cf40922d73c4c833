"""Several processes of one training: gradients, batch statistics and figures become their mean.

Each process has the whole model and takes its share of every batch. There is no wrapper around the model:
DistributedDataParallel needs one backward pass for each forward pass through all weights, which a game of two players
does not have. Averaging by hand gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from densitywatch.errors import ParamsError


def check_share(name: str, batch_size: int, fabric: Any, *, game: bool = False) -> None:
    """Raise ParamsError where a batch cannot be shared evenly: the mean of unequal shares' means would be wrong.

    A game needs two images a process: its generators normalise by the spread of the batch.
    """
    if batch_size % fabric.world_size:
        raise ParamsError(
            f"{name}.training.batch_size: {batch_size} images cannot be shared evenly by {fabric.world_size} devices;"
            f" take a multiple of {fabric.world_size}, or other device.devices"
        )
    if game and batch_size < 2 * fabric.world_size:
        raise ParamsError(
            f"{name}.training.batch_size: a game of two networks needs at least 2 images for each device, not"
            f" {batch_size // fabric.world_size}; take {2 * fabric.world_size} or more"
        )


def average_gradients(fabric: Any, part: nn.Module) -> None:
    """Each process's gradient of its share becomes that of the whole batch."""
    average(fabric, [weight.grad for weight in part.parameters() if weight.grad is not None])


def average_statistics(fabric: Any, model: nn.Module) -> None:
    """Buffers that depend on the data, such as batch normalisation's, become their mean on all processes."""
    average(fabric, [buffer for buffer in model.buffers() if buffer.is_floating_point()])


@torch.no_grad()
def average(fabric: Any, tensors: Sequence[Tensor]) -> None:
    """Each of the tensors becomes its mean over all processes, in place; all of them are sent in one message."""
    if fabric.world_size == 1 or not tensors:
        return
    mean = fabric.all_reduce(torch.cat([tensor.reshape(-1) for tensor in tensors]), reduce_op="mean")
    parts = mean.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))


def average_figures(fabric: Any, logs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The figures of the whole batch, so that a loss of NaN stops all processes at once."""
    if fabric.world_size == 1:
        return logs
    values = torch.stack([value.detach().to(fabric.device, torch.float32) for value in logs.values()])
    return dict(zip(logs, fabric.all_reduce(values, reduce_op="mean").unbind(), strict=True))


def total(fabric: Any, sums: dict[str, float], count: int) -> tuple[dict[str, float], int]:
    """Sums over images, and the number of images, over all processes."""
    if fabric.world_size == 1:
        return sums, count
    values = torch.tensor([*sums.values(), count], dtype=torch.float64, device=fabric.device)
    *added, images = fabric.all_reduce(values, reduce_op="sum").tolist()
    return dict(zip(sums, added, strict=True)), round(images)
