"""The convolutional layers that the acoustic encoder and the decoders share.

Activations are (batch, time, channel), contiguous: kernels wider than 1 run as channels-last 2-d convolutions of
height 1, kernels of 1 as linear layers. On CPUs both are several times faster than `conv1d` over (batch, channel,
time). Weight norm is folded into plain weights when a checkpoint is loaded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from codec.framing import Delay, Reach

Shapes = Mapping[str, tuple[int, ...]]
Tensors = Mapping[str, torch.Tensor]


class PublishedLayer(nn.Module, ABC):
    """A layer whose tensors stand in a checkpoint under other names or in another shape than here."""

    @abstractmethod
    def published_shapes(self) -> Shapes:
        """Shapes of the layer's tensors in a checkpoint, by name."""

    @abstractmethod
    def from_published(self, tensors: Tensors) -> Tensors:
        """This layer's own tensors, by name, from the checkpoint's."""


class Snake(PublishedLayer):
    """x + sin^2(alpha x) / (alpha + 1e-9), one alpha a channel (arXiv 2006.08195).

    Its tensors stay float32: in half precision it widens, computes, and rounds once.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(num_channels))
        self.inverse = nn.Parameter(torch.empty(num_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, C] to the same shape and dtype."""
        sine = (x * self.alpha).sin_()
        return torch.addcmul(x.to(sine.dtype), sine.square_(), self.inverse).to(x.dtype)

    def published_shapes(self) -> Shapes:
        """`alpha` alone."""
        return {"alpha": (1, self.alpha.shape[0], 1)}

    def from_published(self, tensors: Tensors) -> Tensors:
        """`alpha` and its inverse, each [C]."""
        alpha = tensors["alpha"].flatten()
        return {"alpha": alpha, "inverse": 1.0 / (alpha + 1e-9)}


class Conv(PublishedLayer):
    """A convolution over time, [B, T, C_in] to [B, T', C_out]; `padding` is zeros on the left and the right."""

    def __init__(
        self,
        num_in: int,
        num_out: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        padding: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.stride, self.dilation, self.padding = stride, dilation, padding
        self._published = (num_out, num_in, kernel_size)
        layout = (num_out, num_in, 1, kernel_size) if kernel_size > 1 else (num_out, num_in)
        self.weight = nn.Parameter(torch.empty(layout))
        self.bias = nn.Parameter(torch.empty(num_out))

    @property
    def reach(self) -> Reach:
        """What an output sees of the input."""
        before, seen = self.padding[0], (self._published[2] - 1) * self.dilation
        return Reach(self.stride, before, seen - before)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, C_in] to [B, T', C_out]."""
        if self.weight.dim() == 2:
            return functional.linear(x, self.weight, self.bias)
        left, right = self.padding
        if left != right:
            x, left = functional.pad(x, (0, 0, left, right)), 0
        y = functional.conv2d(
            _as_image(x), self.weight, self.bias, stride=self.stride, dilation=self.dilation, padding=(0, left)
        )
        return _as_sequence(y)

    def unpadded(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, C_in] to [B, (T - span) // stride + 1, C_out]: outputs that see rows of `x` alone, T >= span.

        For few rows: one product with the weights as they lie in memory, which a convolution's kernel would first
        copy into another order, at every call.
        """
        if self.weight.dim() == 2:
            return functional.linear(x, self.weight, self.bias)
        windows = x.unfold(1, self.reach.span, self.stride)[..., :: self.dilation]
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        return functional.linear(windows.transpose(2, 3).flatten(2), weight, self.bias)

    def published_shapes(self) -> Shapes:
        """Weight norm's two parts, `weight_g` and `weight_v`, and `bias`."""
        return _weight_norm_shapes(self._published, self.bias)

    def from_published(self, tensors: Tensors) -> Tensors:
        """The folded `weight`, laid out for the kernel it runs on, and `bias`."""
        folded = fold_weight_norm(tensors["weight_g"], tensors["weight_v"])
        weight = folded.squeeze(-1) if self.weight.dim() == 2 else _image_weight(folded)
        return {"weight": weight, "bias": tensors["bias"]}


class TransposedConv(PublishedLayer):
    """An upsampling convolution, [B, T, C_in] to [B, T * stride, C_out]."""

    def __init__(
        self,
        num_in: int,
        num_out: int,
        kernel_size: int,
        *,
        stride: int,
        padding: int = 0,
        output_padding: int = 0,
    ) -> None:
        super().__init__()
        self.stride, self.padding, self.output_padding = stride, padding, output_padding
        self._published = (num_in, num_out, kernel_size)
        self.weight = nn.Parameter(torch.empty(num_in, num_out, 1, kernel_size))
        self.bias = nn.Parameter(torch.empty(num_out))

    @property
    def delay(self) -> Delay:
        """How far its outputs are behind its inputs."""
        return Delay(self.stride, self.padding)

    @property
    def num_seen(self) -> int:
        """Inputs that one output sees at most."""
        return -(-self._published[2] // self.stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, C_in] to [B, T * stride, C_out]."""
        y = functional.conv_transpose2d(
            _as_image(x),
            self.weight,
            self.bias,
            stride=(1, self.stride),
            padding=(0, self.padding),
            output_padding=(0, self.output_padding),
        )
        return _as_sequence(y)

    def settled(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, C_in] to [B, (T - num_seen + 1) * stride, C_out]: outputs that see rows of `x` alone, uncut.

        The kernel size is a multiple of the stride. For few rows, as `Conv.unpadded`.
        """
        num = x.shape[1] - self.num_seen + 1
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        parts = (x @ weight).view(*x.shape[:2], self.num_seen, self.stride, self._published[1])
        # What is added to a row's outputs comes from the row itself and from those before it.
        shifted = [parts[:, self.num_seen - 1 - back :][:, :num, back] for back in range(self.num_seen)]
        return (torch.stack(shifted).sum(0) + self.bias).flatten(1, 2)

    def published_shapes(self) -> Shapes:
        """Weight norm's two parts, `weight_g` and `weight_v`, and `bias`."""
        return _weight_norm_shapes(self._published, self.bias)

    def from_published(self, tensors: Tensors) -> Tensors:
        """The folded `weight`, laid out for the kernel it runs on, and `bias`."""
        folded = fold_weight_norm(tensors["weight_g"], tensors["weight_v"])
        return {"weight": _image_weight(folded), "bias": tensors["bias"]}


class ResidualUnit(nn.Module):
    """x + conv1(snake(conv7(snake(x)))), the wide convolution dilated.

    The published causal units hold their padding as a layer without tensors, which shifts the later names by one.
    """

    def __init__(self, num_channels: int, dilation: int, *, causal: bool) -> None:
        super().__init__()
        reach = 6 * dilation
        padding = (reach, 0) if causal else (reach // 2, reach // 2)
        wide = Conv(num_channels, num_channels, 7, dilation=dilation, padding=padding)
        layers: list[nn.Module] = [Snake(num_channels), wide, Snake(num_channels), Conv(num_channels, num_channels, 1)]
        if causal:
            layers.insert(1, nn.Identity())
        self.block = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor, past_end: torch.Tensor | None) -> torch.Tensor:
        """`x` [B, T, C]; `past_end` like `silence`, so that no clip sees beyond its own end."""
        x = silence(x, past_end)
        changed: torch.Tensor = self.block(x)
        return x + changed


def silence(x: torch.Tensor, past_end: torch.Tensor | None) -> torch.Tensor:
    """`x` [B, T, C] with zeros where `past_end` bool [B, T] is true; None when all clips are equally long.

    Snake maps 0 to 0, so zeros before it are zeros for the convolution behind it: a clip is then padded with
    zeros at its own end as if it were alone.
    """
    return x if past_end is None else x.masked_fill(past_end[..., None], 0.0)


def fold_weight_norm(weight_g: torch.Tensor, weight_v: torch.Tensor) -> torch.Tensor:
    """The plain weight g * v / |v|, the norm over all but the first dimension (arXiv 1602.07868)."""
    norm = torch.linalg.vector_norm(weight_v, dim=tuple(range(1, weight_v.dim())), keepdim=True)
    folded: torch.Tensor = weight_v * (weight_g / norm)
    return folded


def _weight_norm_shapes(weight: tuple[int, ...], bias: torch.Tensor) -> Shapes:
    return {"weight_g": (weight[0], 1, 1), "weight_v": weight, "bias": tuple(bias.shape)}


def _image_weight(weight: torch.Tensor) -> torch.Tensor:
    """[O, I, K] as [O, I, 1, K], channels last in memory."""
    return weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)


def _as_image(x: torch.Tensor) -> torch.Tensor:
    """[B, T, C] seen as [B, C, 1, T], channels last in memory."""
    return x.unsqueeze(1).permute(0, 3, 1, 2)


def _as_sequence(image: torch.Tensor) -> torch.Tensor:
    """[B, C, 1, T] as [B, T, C], contiguous: a one-channel input may come back in the other layout."""
    return image.permute(0, 2, 3, 1).squeeze(1).contiguous()
