"""The acoustic encoder on a CPU: clips laid end to end, worked through in tiles that stay in the cache.

A *strip* is a matrix [rows, channels] of all clips of a batch one after another, with rows of zeros between them, as
many as the widest convolution reaches: so each clip is padded with zeros at its own ends as if it were alone, and
no padding up to the longest clip is computed. Each level of the encoder (three residual units and the convolution that
strides) runs over its strip tile by tile, from its input to its output, in buffers that are used again and again:
whole activations would be tens of megabytes a layer, and moving them takes longer than the arithmetic.

A convolution is a sum of matrix products, one a tap, over rows shifted against each other: no unfolded copy is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, zip_longest
from math import prod
from typing import cast

import torch

from codec.longcat.acoustic import DILATIONS, AcousticEncoder, EncoderBlock
from codec.longcat.layers import Conv, ResidualUnit, Snake

_TILE_VALUES = 1 << 19
_TILE_ROWS_MIN = 4096
"""A tile's buffers have about so many values, two megabytes, or so many rows: what its neighbours compute again at its
edges is then a hundredth."""

_TILE_BUFFERS = 3
_FIRST_REACH, _LAST_REACH = 3, 1
_REACH = 3 * max(DILATIONS)
"""Rows that the widest convolution sees on either side."""

_HALO = 3 * sum(DILATIONS)
"""Rows that the three units of a level see together."""


@dataclass(frozen=True, slots=True)
class Strip:
    """Where clips stand: clip i in rows `starts[i]` to `ends[i]`, zeros in all others."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    num_rows: int

    @classmethod
    def of(cls, sizes: Sequence[int], *, gap: int, margin: int, multiple: int = 1) -> Strip:
        """Clips of `sizes` rows, at least `gap` rows apart and `margin` from the edges, starting at multiples."""
        first = _rounded_up(margin, multiple)
        starts = tuple(accumulate((_rounded_up(size + gap, multiple) for size in sizes[:-1]), initial=first))
        ends = tuple(start + size for start, size in zip(starts, sizes, strict=True))
        return cls(starts, ends, ends[-1] + first)

    def gaps(self, first: int, last: int) -> Iterator[slice]:
        """Runs of rows that are no clip's, within rows `first` to `last` and counted from `first`."""
        for left, right in zip((0, *self.ends), (*self.starts, self.num_rows), strict=True):
            if left < last and right > first:
                yield slice(max(left - first, 0), min(right, last) - first)

    def clips(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """(clip, its first row, its last row) of what lies within rows `first` to `last`."""
        for clip, (start, end) in enumerate(zip(self.starts, self.ends, strict=True)):
            if start < last and end > first:
                yield clip, max(start, first), min(end, last)


_Affine = tuple[list[torch.Tensor], torch.Tensor]
"""A convolution's matrices, one a tap (or a run of taps as long as the stride), and its bias."""

_Read = Callable[[int, int, torch.Tensor], None]
"""Writes rows `first` to `last` of a level's input into a buffer."""


@dataclass(frozen=True, slots=True)
class _Unit:
    """A residual unit's tensors as the products use them."""

    dilation: int
    reach: int
    snake1: Snake
    wide: _Affine
    snake2: Snake
    narrow: tuple[torch.Tensor, torch.Tensor]

    @classmethod
    def of(cls, unit: ResidualUnit) -> _Unit:
        snake1, wide, snake2, narrow = cast(tuple[Snake, Conv, Snake, Conv], tuple(unit.block))
        return cls(
            wide.dilation,
            wide.padding[0],
            snake1,
            (_blocks(wide, 1), wide.bias),
            snake2,
            (narrow.weight.T, narrow.bias),
        )


class _Level:
    """An encoder block's tensors as the products use them."""

    def __init__(self, block: EncoderBlock) -> None:
        *units, snake, down = block.block
        conv = cast(Conv, down)
        self.units = [_Unit.of(cast(ResidualUnit, unit)) for unit in units]
        self.snake = cast(Snake, snake)
        self.stride, self.padding = conv.stride, conv.padding[0]
        self.num_out, self.num_in = conv.weight.shape[:2]
        self.down: _Affine = (_blocks(conv, conv.stride), conv.bias)

    def strip(self, sizes: Sequence[int]) -> Strip:
        """Where clips of so many rows stand in the level's input."""
        return Strip.of(sizes, gap=_REACH, margin=_HALO + _FIRST_REACH + self.stride, multiple=self.stride)


class StripEncoder:
    """Runs an `AcousticEncoder` over strips, in float32 on a CPU; keeps its buffers, so for one thread at a time."""

    def __init__(self, encoder: AcousticEncoder) -> None:
        first, *blocks, snake, last = encoder.block
        self._levels = [_Level(cast(EncoderBlock, block)) for block in blocks]
        self._first, self._snake, self._last = cast(Conv, first), cast(Snake, snake), cast(Conv, last)
        self._frame_size = prod(level.stride for level in self._levels)
        self._buffers = [torch.empty(0) for _ in range(_TILE_BUFFERS + len(self._levels))]

    def __call__(self, waveforms: torch.Tensor, num_frames: Sequence[int]) -> torch.Tensor:
        """Latents [sum of num_frames, latent_dim], clip after clip, of `waveforms` [B, T], zeros past their ends."""
        sizes = [frames * self._frame_size for frames in num_frames]
        strip = self._levels[0].strip(sizes)
        samples = waveforms.new_zeros(strip.num_rows)
        for waveform, start, end in zip(waveforms, strip.starts, strip.ends, strict=True):
            samples[start:end] = waveform[: end - start]
        x = None
        for index, (level, following) in enumerate(zip_longest(self._levels, self._levels[1:])):
            sizes = [size // level.stride for size in sizes]
            after = following.strip(sizes) if following else Strip.of(sizes, gap=_LAST_REACH, margin=_LAST_REACH)
            read = partial(self._first_rows, samples, strip) if x is None else partial(_copied_rows, x)
            result = self._buffer(_TILE_BUFFERS + index, after.num_rows, level.num_out)
            x = self._run(level, read, strip, after, result)
            strip = after
        assert x is not None
        return self._latents(x, strip)

    def _run(self, level: _Level, read: _Read, strip: Strip, after: Strip, result: torch.Tensor) -> torch.Tensor:
        """A level's output, `result`, in the strip of the next one."""
        for gap in after.gaps(0, after.num_rows):
            result[gap] = 0.0
        step = max(_TILE_VALUES // level.num_in, _TILE_ROWS_MIN) // level.stride * level.stride
        for first in range(strip.starts[0], strip.ends[-1], step):
            last = min(first + step, strip.ends[-1])
            y = self._run_tile(level, read, strip, first, last)
            for clip, left, right in strip.clips(first, last):
                to = after.starts[clip] + (left - strip.starts[clip]) // level.stride
                source = y[(left - first) // level.stride : (right - first) // level.stride]
                result[to : to + len(source)] = source
        return result

    def _run_tile(self, level: _Level, read: _Read, strip: Strip, first: int, last: int) -> torch.Tensor:
        """Rows `first` to `last` of a level's input to [(last - first) / stride, C_out], in a buffer."""
        left, right = first - level.padding, last + level.stride - level.padding
        halo = _HALO
        x = self._buffer(0, right - left + 2 * halo, level.num_in)
        read(left - halo, right + halo, x)
        for unit in level.units:
            halo -= unit.reach
            x = self._run_unit(unit, x)
            for gap in strip.gaps(left - halo, right + halo):
                x[gap] = 0.0
        snaked = _snake(level.snake, x, self._buffer(1, *x.shape))
        y = self._buffer(2, (last - first) // level.stride, level.num_out)
        return _convolve(level.down, snaked.view(-1, level.stride * level.num_in), y)

    def _run_unit(self, unit: _Unit, x: torch.Tensor) -> torch.Tensor:
        """[N, C] to its inner [N - 2 * reach, C], changed in place."""
        snaked = _snake(unit.snake1, x, self._buffer(1, *x.shape))
        x = x[unit.reach : len(x) - unit.reach]
        y = _convolve(unit.wide, snaked, self._buffer(2, *x.shape), dilation=unit.dilation)
        snaked = _snake(unit.snake2, y, self._buffer(1, *x.shape))
        weight, bias = unit.narrow
        return x.addmm_(snaked, weight).add_(bias)

    def _first_rows(self, samples: torch.Tensor, strip: Strip, first: int, last: int, out: torch.Tensor) -> None:
        """Rows of the first convolution's output: there is one channel, so its seven taps are one small product."""
        windows = samples[first - _FIRST_REACH : last + _FIRST_REACH].unfold(0, 2 * _FIRST_REACH + 1, 1)
        torch.addmm(self._first.bias, windows, self._first.weight.flatten(1).T, out=out)
        for gap in strip.gaps(first, last):
            out[gap] = 0.0

    def _latents(self, x: torch.Tensor, strip: Strip) -> torch.Tensor:
        snaked = _snake(self._snake, x, torch.empty_like(x))
        taps, bias = _blocks(self._last, 1), self._last.bias
        reach = _LAST_REACH
        latents = _convolve((taps, bias), snaked, x.new_empty(len(x) - 2 * reach, len(bias)))
        return torch.cat(
            [latents[start - reach : end - reach] for start, end in zip(strip.starts, strip.ends, strict=True)]
        )

    def _buffer(self, index: int, num_rows: int, num_channels: int) -> torch.Tensor:
        """[num_rows, num_channels] of whatever was there before."""
        num_values = num_rows * num_channels
        if self._buffers[index].numel() < num_values:
            self._buffers[index] = torch.empty(num_values)
        return self._buffers[index][:num_values].view(num_rows, num_channels)


def _blocks(conv: Conv, size: int) -> list[torch.Tensor]:
    """Views [size * C_in, C_out] of the weights, for each run of `size` taps."""
    num_out, num_in, _, kernel_size = conv.weight.shape
    by_tap = conv.weight.squeeze(2).transpose(1, 2)  # as it lies in memory: [C_out, K, C_in]
    assert kernel_size % size == 0
    return [by_tap[:, first : first + size].reshape(num_out, size * num_in).T for first in range(0, kernel_size, size)]


def _convolve(affine: _Affine, x: torch.Tensor, out: torch.Tensor, *, dilation: int = 1) -> torch.Tensor:
    """Over the taps, the sum of their products with rows of `x`, each shifted by `dilation` more; `out` [N, C_out]."""
    (first, *others), bias = affine
    torch.addmm(bias, x[: len(out)], first, out=out)
    for index, weight in enumerate(others, start=1):
        out.addmm_(x[index * dilation : index * dilation + len(out)], weight)
    return out


def _snake(snake: Snake, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """As `Snake`, into a buffer."""
    torch.mul(x, snake.alpha, out=out)
    out.sin_().square_()
    return torch.addcmul(x, out, snake.inverse, out=out)


def _copied_rows(x: torch.Tensor, first: int, last: int, out: torch.Tensor) -> None:
    out.copy_(x[first:last])


def _rounded_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
