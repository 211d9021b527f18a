"""The reference's resampler, bit for bit: a windowed sinc over Hann, six zero crossings, rolloff 0.99.

The formula is that of torchaudio's `functional.resample` with its defaults, its kernel computed in float32 in
that order: in near-silence a codec's log-mel magnifies last-bit differences into other tokens. The last bits
also follow torch's number of threads; the decoding processes run it on one.
"""

from __future__ import annotations

import functools
import math
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

ZERO_CROSSINGS: Final = 6
ROLLOFF: Final = 0.99

PIECE_SAMPLES: Final = 1 << 15
"""Source samples convolved at once of a long clip.

Above 20,480 values torch takes another convolution than below it, with other last bits. A clip shorter than
a piece is therefore convolved whole, as the reference does; a longer one in pieces of this one shape.
"""

KERNEL_VALUES_MAX: Final = 1 << 24
"""64 MiB. Rates with a small common divisor need a kernel of (their product / divisor**2) values."""


class Resampler:
    """Resamples one clip block by block; the joined output is the same bits however it was cut in blocks.

    Raises `ValueError` when the kernel of the two rates is above `KERNEL_VALUES_MAX`.
    """

    def __init__(self, source_rate_hz: int, target_rate_hz: int, num_channels: int) -> None:
        divisor = math.gcd(source_rate_hz, target_rate_hz)
        self._old, self._new = source_rate_hz // divisor, target_rate_hz // divisor
        self._is_identity = self._old == self._new
        if self._is_identity:
            return
        num_values = num_kernel_values(source_rate_hz, target_rate_hz)
        if num_values > KERNEL_VALUES_MAX:
            raise ValueError(
                f"resampling {source_rate_hz} to {target_rate_hz} Hz takes a kernel of {num_values} values; allowed "
                f"are {KERNEL_VALUES_MAX}: take a rate with a larger common divisor"
            )
        self._kernel = _kernel(self._old, self._new)
        self._width = _width(self._old, self._new)
        self._hop = -(-PIECE_SAMPLES // self._old) * self._old
        self._buffer = np.zeros((num_channels, self._hop + 2 * self._width), np.float32)
        self._num_filled = self._width
        self._num_source = 0
        self._num_given = 0

    def push(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take the next block, float32 [C, T]; gives what is ready of the output, float32 [C, N], N >= 0."""
        if self._is_identity:
            return block
        self._num_source += block.shape[1]
        pieces: list[NDArray[np.float32]] = []
        while block.shape[1]:
            taken = block[:, : self._buffer.shape[1] - self._num_filled]
            block = block[:, taken.shape[1] :]
            self._buffer[:, self._num_filled : self._num_filled + taken.shape[1]] = taken
            self._num_filled += taken.shape[1]
            if self._num_filled == self._buffer.shape[1]:
                pieces.append(self._next_piece())
        return self._joined(pieces)

    def finish(self) -> NDArray[np.float32]:
        """The rest of the output: in all it has ceil(new rate * source samples / old rate) samples."""
        if self._is_identity:
            return np.zeros((0, 0), np.float32)
        num_total = -(-self._new * self._num_source // self._old)
        if self._num_given == 0:
            return self._convolved(self._whole())[:, :num_total]
        pieces: list[NDArray[np.float32]] = []
        num_missing = num_total - self._num_given
        while self._num_given < num_total:
            self._buffer[:, self._num_filled :] = 0
            pieces.append(self._next_piece())
        return self._joined(pieces)[:, :num_missing]

    def _whole(self) -> NDArray[np.float32]:
        """The short clip in the buffer with the reference's padding of zeros: `width`, and `width + old`."""
        padded = np.zeros((len(self._buffer), self._num_filled + self._width + self._old), np.float32)
        padded[:, : self._num_filled] = self._buffer[:, : self._num_filled]
        return padded

    def _next_piece(self) -> NDArray[np.float32]:
        piece = np.concatenate([self._convolved(channel[None]) for channel in self._buffer])
        overlap = 2 * self._width
        self._buffer[:, :overlap] = self._buffer[:, self._hop :].copy()
        self._num_filled = max(self._num_filled - self._hop, 0)
        self._num_given += piece.shape[1]
        return piece

    def _convolved(self, padded: NDArray[np.float32]) -> NDArray[np.float32]:
        """[C, L] of padded source -> [C, N]: the `new` phases of each `old` source samples, side by side."""
        phases = torch.nn.functional.conv1d(torch.from_numpy(padded)[:, None], self._kernel, stride=self._old)
        result: NDArray[np.float32] = phases.transpose(1, 2).reshape(len(padded), -1).numpy()
        return result

    def _joined(self, pieces: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        return np.concatenate(pieces, axis=1) if pieces else np.zeros((len(self._buffer), 0), np.float32)


def resample(waveform: NDArray[np.float32], source_rate_hz: int, target_rate_hz: int) -> NDArray[np.float32]:
    """A whole clip, float32 [C, T] -> float32 [C, ceil(target * T / source)]; `ValueError` as `Resampler`."""
    resampler = Resampler(source_rate_hz, target_rate_hz, len(waveform))
    if source_rate_hz == target_rate_hz:
        return waveform
    return np.concatenate([resampler.push(waveform), resampler.finish()], axis=1)


def to_mono(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean of the channels, float32 [C, T] -> float32 [T], added one after the other; of one, itself."""
    if len(waveform) == 1:
        only: NDArray[np.float32] = waveform[0]
        return only
    mono: NDArray[np.float32] = waveform[0].copy()
    for channel in waveform[1:]:
        mono += channel
    mono /= np.float32(len(waveform))
    return mono


def num_kernel_values(source_rate_hz: int, target_rate_hz: int) -> int:
    """How many float32 values the kernel between two rates has."""
    divisor = math.gcd(source_rate_hz, target_rate_hz)
    old, new = source_rate_hz // divisor, target_rate_hz // divisor
    return new * (2 * _width(old, new) + old)


def _width(old: int, new: int) -> int:
    return math.ceil(ZERO_CROSSINGS * old / (min(old, new) * ROLLOFF))


@functools.lru_cache(maxsize=4)
def _kernel(old: int, new: int) -> torch.Tensor:
    """The kernel, float32 [new, 1, 2 * width + old]: one phase an output sample of a period."""
    base, width = min(old, new) * ROLLOFF, _width(old, new)
    taps = torch.arange(-width, width + old, dtype=torch.float32) / old
    t = torch.arange(0, -new, -1, dtype=torch.float32)[:, None, None] / new + taps
    t *= base
    t.clamp_(-ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = torch.cos(t * math.pi / ZERO_CROSSINGS / 2) ** 2
    t *= math.pi
    kernel = torch.where(t == 0, torch.tensor(1.0), t.sin() / t)
    kernel *= window * (base / old)
    return kernel
