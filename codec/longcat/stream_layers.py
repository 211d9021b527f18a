"""Layers fed piece by piece: each keeps the few inputs that its next outputs still see, and computes nothing twice.

A *stage* takes the next rows of its input, [B, T, ...] with T of 0 or more, and gives the rows of its output that are
settled by them, whatever comes later; with `last` it gives all the rest, as if its input had ended there. The joined
output is what the layer gives of the whole input, but for last bits that follow the shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, cast

import torch
from torch import nn

from codec.framing import Reach
from codec.longcat.acoustic import AcousticEncoder, EncoderBlock
from codec.longcat.decoder import DecoderBlock, MemoryLayer, WaveformDecoder
from codec.longcat.layers import Conv, ResidualUnit, Snake, TransposedConv


class Stage(Protocol):
    """A layer with the state of one stream."""

    def __call__(self, x: torch.Tensor, *, last: bool) -> torch.Tensor:
        """The next rows of the output."""
        ...


class Pointwise:
    """A layer that sees one row at a time: it has no state."""

    def __init__(self, compute: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._compute = compute

    def __call__(self, x: torch.Tensor, *, last: bool) -> torch.Tensor:  # noqa: ARG002
        """[B, T, C] to the same T."""
        return self._compute(x)


class Sliding:
    """A window that slides over its input; `compute` gives an output for each of its places in [B, N, ...].

    Zeros stand before the first input, as many as the window reaches back, and `num_after` behind the last.
    """

    def __init__(self, reach: Reach, compute: Callable[[torch.Tensor], torch.Tensor], *, num_after: int = 0) -> None:
        self._reach, self._compute, self._num_after = reach, compute, num_after
        self._rows: torch.Tensor | None = None
        self._num_skipped = 0
        """Inputs still to come that no window sees, where the stride is wider than the window."""

    def __call__(self, x: torch.Tensor, *, last: bool) -> torch.Tensor:
        """[B, T, ...] to [B, T', ...]."""
        span, stride = self._reach.span, self._reach.stride
        parts = [zeros_like_rows(x, self._reach.before) if self._rows is None else self._rows, x]
        if last:
            parts.append(zeros_like_rows(x, self._num_after))
        rows = torch.cat(parts, dim=1)
        now_skipped = min(self._num_skipped, rows.shape[1])
        rows, self._num_skipped = rows[:, now_skipped:], self._num_skipped - now_skipped
        num = (rows.shape[1] - span) // stride + 1
        if num < 1:
            self._rows = rows
            return self._compute(zeros_like_rows(x, span))[:, :0]
        self._rows = rows[:, num * stride :]
        self._num_skipped += max(num * stride - rows.shape[1], 0)
        return self._compute(rows[:, : (num - 1) * stride + span])


class Upsampling:
    """A transposed convolution."""

    def __init__(self, conv: TransposedConv) -> None:
        self._conv = conv
        self._rows: torch.Tensor | None = None
        self._num_cut = conv.padding
        """Rows that are still to be cut off the start."""

    def __call__(self, x: torch.Tensor, *, last: bool) -> torch.Tensor:
        """[B, T, C_in] to [B, T', C_out]; T' is `T * rate` but for the first and the last call."""
        num_before = self._conv.num_seen - 1
        parts = [zeros_like_rows(x, num_before) if self._rows is None else self._rows, x]
        num = x.shape[1] * self._conv.stride
        if last:
            parts.append(zeros_like_rows(x, 1))
            num += self._conv.padding
        rows = torch.cat(parts, dim=1)
        self._rows = rows[:, x.shape[1] :]
        now_cut = min(self._num_cut, num)
        self._num_cut -= now_cut
        return self._conv.settled(rows)[:, now_cut:num]


class Residual:
    """x + inner(x), x waiting for what `inner` holds back."""

    def __init__(self, inner: Stage) -> None:
        self._inner = inner
        self._waiting: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, *, last: bool) -> torch.Tensor:
        """[B, T, C] to [B, T', C]."""
        waiting = x if self._waiting is None else torch.cat((self._waiting, x), dim=1)
        changed = self._inner(x, last=last)
        num = changed.shape[1]
        self._waiting = waiting[:, num:]
        return waiting[:, :num] + changed


class Recurrent:
    """An LSTM, step by step: its kernel for sequences would copy all weights into another order at every call."""

    def __init__(self, lstm: nn.LSTM) -> None:
        self._lstm = lstm
        weights = (lstm.weight_ih_l0, lstm.weight_hh_l0, lstm.bias_ih_l0, lstm.bias_hh_l0)
        self._weights = cast(tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], weights)
        self._state: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, x: torch.Tensor, *, last: bool) -> torch.Tensor:  # noqa: ARG002
        """[B, T, C] to the same shape."""
        lstm, remembered = self._lstm, [x[:, :0]]
        hidden, cell = self._state or (x.new_zeros(len(x), lstm.hidden_size), x.new_zeros(len(x), lstm.hidden_size))
        for row in x.unbind(1):
            hidden, cell = torch.lstm_cell(row, (hidden, cell), *self._weights)
            remembered.append(hidden[:, None])
        self._state = hidden, cell
        return torch.cat(remembered, dim=1)


class Chain:
    """Stages one behind the other."""

    def __init__(self, stages: Iterable[Stage]) -> None:
        self._stages = tuple(stages)

    def __call__(self, x: torch.Tensor, *, last: bool) -> torch.Tensor:
        """What comes out of the last of them."""
        for stage in self._stages:
            x = stage(x, last=last)
        return x


def chain_of(layers: Iterable[nn.Module]) -> Chain:
    """A fresh stream through layers of the acoustic encoder or of a decoder."""
    return Chain(map(stage_of, layers))


def stage_of(layer: nn.Module) -> Stage:
    """A fresh stream through one layer."""
    stage: Stage
    match layer:
        case Conv():
            stage = Sliding(layer.reach, layer.unpadded, num_after=layer.padding[1])
        case TransposedConv():
            stage = Upsampling(layer)
        case ResidualUnit():
            stage = Residual(chain_of(layer.block))
        case nn.LSTM():
            stage = Recurrent(layer)
        case MemoryLayer():
            stage = chain_of([*layer.lstm_list1, layer.ln1, *layer.lstm_list2, layer.ln2])
        case AcousticEncoder() | EncoderBlock() | DecoderBlock():
            stage = chain_of(layer.block)
        case WaveformDecoder():
            stage = Chain([chain_of(layer.mem_layers), chain_of(layer.model), Pointwise(torch.tanh)])
        case Snake() | nn.LayerNorm() | nn.Identity():
            stage = Pointwise(layer)
        case _:
            raise TypeError(f"found a {type(layer).__name__}, whose state in a stream nobody has written down")
    return stage


def zeros_like_rows(x: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Zeros [B, num_rows, ...], else as `x`."""
    return x.new_zeros(x.shape[0], num_rows, *x.shape[2:])
