"""The distribution of one 8-bit pixel: 256 free probabilities, or a mixture of discretised logistics."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densitywatch.models.common.pixel_values import scale_images


def logistic_mixture_log_prob(x: Tensor, parameters: Tensor) -> Tensor:
    """Log-probability of 8-bit values under a mixture of discretised logistics (Salimans et al. 2017, PixelCNN++).

    x: integers 0..255, shape (...). parameters: (3, K, ...), mixture logits, means, log-scales, on the [-1, 1] scale.
    Returns nats, shape (...). The first and the last value take the tails, so the 256 probabilities sum to one.

    A logistic's distribution function is sigmoid((x - mean) / scale). A value's probability is what it rises by from
    the lower edge a of the value's bin to the upper edge b, both in units of the scale: sigmoid(b) - sigmoid(a). That
    is computed as sigmoid(b) * sigmoid(-a) * (1 - exp(a - b)), which is the same and keeps its precision where both
    are near 0 or 1. PixelCNN++ falls back on the density there.
    """
    logits, means, log_scales = parameters.unbind(0)  # (K, ...) each
    log_scales = log_scales.clamp(min=-7.0)  # narrower than a ninth of a bin is no use
    inverse_scale = torch.exp(-log_scales)
    centred = (x.to(parameters.dtype) / 127.5 - 1.0).unsqueeze(0) - means
    half = 1.0 / 255.0  # half a bin: 256 bins cover [-1 - 1/255, 1 + 1/255]
    upper = (centred + half) * inverse_scale  # b
    lower = (centred - half) * inverse_scale  # a
    # the first bin reaches down to minus infinity and keeps sigmoid(b) alone, the last one up and keeps sigmoid(-a)
    first, last = (x == 0).unsqueeze(0), (x == 255).unsqueeze(0)
    log_cdf = torch.where(last, 0.0, F.logsigmoid(upper))
    log_survival = torch.where(first, 0.0, F.logsigmoid(-lower))
    log_width = torch.where(first | last, 0.0, torch.log(-torch.expm1(-2.0 * half * inverse_scale)))  # 1 - exp(a - b)
    # log sum_k weight_k * probability_k
    return torch.logsumexp(F.log_softmax(logits, 0) + log_cdf + log_survival + log_width, 0)


class PixelHead(nn.Module):
    """The distribution of a pixel's sub-pixels, in a chosen colour sequence, given features of what came before it.

    The features (B, F, H, W) may depend on earlier pixels only. Within a pixel, colour k of the sequence also sees the
    colours before it, through a 1x1 convolution whose weights are masked to be strictly lower triangular in the
    sequence. In PixelRNN (van den Oord et al. 2016) masks A and B do this in every layer; here it is in one place.

    kind: `softmax`, 256 free probabilities; `logistic_mixture`, `components` discretised logistics.
    """

    mask: Tensor

    def __init__(
        self,
        features: int,
        channels: int,
        *,
        kind: Literal["softmax", "logistic_mixture"],
        components: int,
        colour_order: str,
    ) -> None:
        super().__init__()
        self.channels, self.kind, self.components = channels, kind, components
        self.sequence = [0] if channels == 1 else ["rgb".index(colour) for colour in colour_order]
        self.outputs = 256 if kind == "softmax" else 3 * components
        # a block of `features` hidden channels for each colour, and from each block that colour's parameters alone
        self.hidden = nn.Conv2d(features, channels * features, 1)
        self.out = nn.Conv2d(channels * features, channels * self.outputs, 1, groups=channels)
        if channels > 1:
            self.colours = nn.Conv2d(channels, channels * features, 1, bias=False)
            earlier = torch.tril(torch.ones(channels, channels), diagonal=-1)  # row k: the colours before colour k
            self.register_buffer("mask", earlier.repeat_interleave(features, 0)[:, :, None, None], persistent=False)
        if kind == "logistic_mixture":
            with torch.no_grad():  # start with means spread over the range and scales about the gaps between them
                assert self.out.bias is not None
                bias = self.out.get_parameter("bias").view(channels, 3, components)
                bias[:, 1] = torch.linspace(-1.0, 1.0, components + 2)[1:-1]
                bias[:, 2] = -2.0

    def parameters_of(self, features: Tensor, x: Tensor) -> Tensor:
        """Distribution parameters (B, C, outputs, H, W), colours in sequence; x is uint8 (B, C, H, W)."""
        # bfloat16 has 8 binary digits, too few for a mean among 256 values: the head computes in float32
        with torch.autocast(x.device.type, enabled=False):
            features = features.to(self.hidden.weight.dtype)
            hidden = self.hidden(features)
            if self.channels > 1:
                in_sequence = scale_images(x[:, self.sequence], features.dtype)
                hidden = hidden + F.conv2d(in_sequence, self.colours.weight * self.mask)
            b, _, h, w = hidden.shape
            parameters: Tensor = self.out(F.elu(hidden))
        return parameters.view(b, self.channels, self.outputs, h, w)

    def log_prob(self, features: Tensor, x: Tensor) -> Tensor:
        """Nats of every sub-pixel, (B, C, H, W) with the colours in sequence."""
        parameters = self.parameters_of(features, x)
        parameters = parameters.to(torch.promote_types(parameters.dtype, torch.float32))
        values = x[:, self.sequence]
        if self.kind == "softmax":
            return F.log_softmax(parameters, 2).gather(2, values.long().unsqueeze(2)).squeeze(2)
        # neighbouring pixels next to each other in memory: compiled code takes several of them at a time
        parameters = parameters.contiguous()
        b, c, _, h, w = parameters.shape
        mixture = parameters.view(b, c, 3, self.components, h, w).permute(2, 3, 0, 1, 4, 5)
        return logistic_mixture_log_prob(values, mixture)

    def table(self, features: Tensor, x: Tensor, k: int) -> Tensor:
        """Log-probabilities (B, 256, H, W) of colour k of the sequence; reads only colours before k from x."""
        parameters = self.parameters_of(features, x)[:, k]
        parameters = parameters.to(torch.promote_types(parameters.dtype, torch.float32))
        if self.kind == "softmax":
            return F.log_softmax(parameters, 1)
        b, _, h, w = parameters.shape
        mixture = parameters.view(b, 3, self.components, 1, h, w).permute(1, 2, 0, 3, 4, 5)
        values = torch.arange(256, device=x.device).view(1, 256, 1, 1).expand(b, 256, h, w)
        return logistic_mixture_log_prob(values, mixture)

    def expected(self, features: Tensor, x: Tensor, k: int) -> Tensor:
        """The expected value (B, H, W) in 0..255 of colour k of the sequence; reads only colours before k from x.

        For logistics it is the sum over v = 0..254 of P(X > v): one sigmoid a value, where the table needs many
        functions.
        """
        if self.kind == "softmax":
            values = torch.arange(256, device=x.device).view(1, 256, 1, 1)
            return (self.table(features, x, k).exp() * values).sum(1)
        parameters = self.parameters_of(features, x)[:, k]
        parameters = parameters.to(torch.promote_types(parameters.dtype, torch.float32))
        b, _, h, w = parameters.shape
        logits, means, log_scales = parameters.view(b, 3, self.components, h, w).unbind(1)
        inverse_scale = torch.exp(-log_scales.clamp(min=-7.0))
        above = torch.zeros_like(means)
        for value in range(255):  # one at a time: all of them together do not fit into the processor's caches
            edge = (value + 0.5) / 127.5 - 1.0
            above += torch.sigmoid((means - edge) * inverse_scale)
        return (F.softmax(logits, 1) * above).sum(1)


def draw_from_table(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """Values 0..255 by inversion: the first whose cumulated probability exceeds `uniform`.

    (B, 256), (B,) -> uint8 (B,).
    """
    cumulated = log_probs.exp().cumsum(1)
    return (cumulated <= uniform.unsqueeze(1) * cumulated[:, -1:]).sum(1).clamp(max=255).to(torch.uint8)
