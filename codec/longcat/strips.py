"""The acoustic encoder on a CPU: clips laid end to end, worked through in tiles that stay in the cache.

A *strip* is a matrix [rows, channels] of all clips of a batch one after another, with rows of zeros between them, as
many as the widest convolution reaches: so each clip is padded with zeros at its own ends as if it were alone, and
no padding up to the longest clip is computed. Each level of the encoder (three residual units and the convolution that
strides) runs over its strip tile by tile, from its input to its output, in buffers that are used again and again:
whole activations would be tens of megabytes a layer, and moving them takes longer than the arithmetic.

A convolution is a sum of matrix products, one a tap, over rows shifted against each other: no unfolded copy is made.
Passes over the activations that are no products are folded into the weights beforehand. With z = alpha x, Snake is
(z + sin^2 z) / alpha: the convolution before it gives z where it can, the one behind it divides. And a level carries
its residual sum without the biases that were added to it, which each Snake adds as it reads.
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

_ALPHA_MIN = 1e-9
"""Of Snake's alpha: one of 0 means x alone, and could not be divided by."""


@dataclass(frozen=True, slots=True)
class _Scaling:
    """From a level's residual sum x, which lacks some biases, to z = alpha x + shift; `silent` is the x of silence."""

    alpha: torch.Tensor
    shift: torch.Tensor
    silent: torch.Tensor

    @classmethod
    def of(cls, snake: Snake, missing: torch.Tensor) -> _Scaling:
        alpha = _alpha(snake)
        return cls(alpha.float(), (alpha * missing).float(), -missing.float())


@dataclass(frozen=True, slots=True)
class _Unit:
    """A residual unit's tensors as the products use them; its own bias, the last convolution's, is left to others."""

    dilation: int
    reach: int
    wide: _Affine
    narrow: torch.Tensor

    @classmethod
    def of(cls, unit: ResidualUnit) -> _Unit:
        snake1, wide, snake2, narrow = _parts(unit)
        between = _alpha(snake2)
        return cls(
            wide.dilation,
            wide.padding[0],
            _affine(wide, 1, divide_by=_alpha(snake1), multiply_by=between),
            (narrow.weight.double() / between).T.float().contiguous(),
        )


class _Level:
    """An encoder block's tensors as the products use them; `scalings` are those before each unit and the last one."""

    def __init__(self, block: EncoderBlock) -> None:
        units = [cast(ResidualUnit, unit) for unit in block.block[:-2]]
        snake, conv = cast(Snake, block.block[-2]), cast(Conv, block.block[-1])
        self.num_out, self.num_in = conv.weight.shape[:2]
        self.units = [_Unit.of(unit) for unit in units]
        self.scalings: list[_Scaling] = []
        missing = torch.zeros(self.num_in, dtype=torch.float64)
        for unit in units:
            first, _, _, narrow = _parts(unit)
            self.scalings.append(_Scaling.of(first, missing))
            missing = missing + narrow.bias.double()
        self.scalings.append(_Scaling.of(snake, missing))
        self.stride, self.padding = conv.stride, conv.padding[0]
        self.down = _affine(conv, conv.stride, divide_by=_alpha(snake))

    def strip(self, sizes: Sequence[int]) -> Strip:
        """Where clips of so many rows stand in the level's input."""
        return Strip.of(sizes, gap=_REACH, margin=_HALO + _FIRST_REACH + self.stride, multiple=self.stride)


class StripEncoder:
    """Runs an `AcousticEncoder` over strips, in float32 on a CPU; keeps its buffers, so for one thread at a time."""

    @torch.no_grad()
    def __init__(self, encoder: AcousticEncoder) -> None:
        first, *blocks, snake, last = encoder.block
        self._levels = [_Level(cast(EncoderBlock, block)) for block in blocks]
        self._first = cast(Conv, first)
        alpha = _alpha(cast(Snake, snake))
        self._before_last = _Scaling.of(cast(Snake, snake), torch.zeros_like(alpha))
        self._last = _affine(cast(Conv, last), 1, divide_by=alpha)
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
        for unit, before, after in zip(level.units, level.scalings, level.scalings[1:], strict=False):
            halo -= unit.reach
            x = self._run_unit(unit, before, x)
            for gap in strip.gaps(left - halo, right + halo):
                x[gap] = after.silent
        snaked = _snake(level.scalings[-1], x, self._buffer(1, *x.shape), self._buffer(2, *x.shape))
        y = self._buffer(2, (last - first) // level.stride, level.num_out)
        return _convolve(level.down, snaked.view(-1, level.stride * level.num_in), y)

    def _run_unit(self, unit: _Unit, before: _Scaling, x: torch.Tensor) -> torch.Tensor:
        """[N, C] to its inner [N - 2 * reach, C], changed in place."""
        snaked = _snake(before, x, self._buffer(1, *x.shape), self._buffer(2, *x.shape))
        x = x[unit.reach : len(x) - unit.reach]
        z = _convolve(unit.wide, snaked, self._buffer(2, *x.shape), dilation=unit.dilation)
        return x.addmm_(_add_sine(z, self._buffer(1, *x.shape)), unit.narrow)

    def _first_rows(self, samples: torch.Tensor, strip: Strip, first: int, last: int, out: torch.Tensor) -> None:
        """Rows of the first convolution's output: there is one channel, so its seven taps are one small product."""
        windows = samples[first - _FIRST_REACH : last + _FIRST_REACH].unfold(0, 2 * _FIRST_REACH + 1, 1)
        torch.addmm(self._first.bias, windows, self._first.weight.flatten(1).T, out=out)
        for gap in strip.gaps(first, last):
            out[gap] = 0.0

    def _latents(self, x: torch.Tensor, strip: Strip) -> torch.Tensor:
        snaked = _snake(self._before_last, x, torch.empty_like(x), torch.empty_like(x))
        reach = _LAST_REACH
        latents = _convolve(self._last, snaked, x.new_empty(len(x) - 2 * reach, len(self._last[1])))
        return torch.cat(
            [latents[start - reach : end - reach] for start, end in zip(strip.starts, strip.ends, strict=True)]
        )

    def _buffer(self, index: int, num_rows: int, num_channels: int) -> torch.Tensor:
        """[num_rows, num_channels] of whatever was there before."""
        num_values = num_rows * num_channels
        if self._buffers[index].numel() < num_values:
            self._buffers[index] = torch.empty(num_values)
        return self._buffers[index][:num_values].view(num_rows, num_channels)


def _parts(unit: ResidualUnit) -> tuple[Snake, Conv, Snake, Conv]:
    return cast(tuple[Snake, Conv, Snake, Conv], tuple(unit.block))


def _alpha(snake: Snake) -> torch.Tensor:
    """Float64 [C], without zeros; NaN stays."""
    alpha = snake.alpha.double()
    return alpha.where(~(alpha.abs() < _ALPHA_MIN), _ALPHA_MIN)


def _affine(conv: Conv, size: int, *, divide_by: torch.Tensor, multiply_by: torch.Tensor | float = 1.0) -> _Affine:
    """Matrices [size * C_in, C_out] for each run of `size` taps; its inputs are divided, its outputs multiplied."""
    by_tap = conv.weight.double().squeeze(2).permute(2, 1, 0) / divide_by[:, None] * multiply_by
    assert len(by_tap) % size == 0
    matrices = [part.flatten(0, 1).float().contiguous() for part in torch.split(by_tap, size)]
    return matrices, (conv.bias.double() * multiply_by).float()


def _convolve(affine: _Affine, x: torch.Tensor, out: torch.Tensor, *, dilation: int = 1) -> torch.Tensor:
    """Over the taps, the sum of their products with rows of `x`, each shifted by `dilation` more; `out` [N, C_out]."""
    (first, *others), bias = affine
    torch.addmm(bias, x[: len(out)], first, out=out)
    for index, weight in enumerate(others, start=1):
        out.addmm_(x[index * dilation : index * dilation + len(out)], weight)
    return out


def _snake(scaling: _Scaling, x: torch.Tensor, out: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Snake times its alpha; `sine` is room for the way."""
    return _add_sine(torch.addcmul(scaling.shift, x, scaling.alpha, out=out), sine)


def _add_sine(z: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """z + sin^2 z, in place."""
    torch.sin(z, out=sine)
    return z.addcmul_(sine, sine)


def _copied_rows(x: torch.Tensor, first: int, last: int, out: torch.Tensor) -> None:
    out.copy_(x[first:last])


def _rounded_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
