"""Decoded blocks of any source -> the mono clip at the codec's rate; what a source may be is settled here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.clip_limits import AudioRejectedError, ClipLimits
from pipeline.resample import KERNEL_VALUES_MAX, Resampler, num_kernel_values, to_mono
from pipeline.types import Pcm, RejectReason

CHANNELS_MAX: Final = 64
SAMPLE_RATE_HZ_MIN: Final = 1_000
SAMPLE_RATE_HZ_MAX: Final = 768_000


@dataclass(frozen=True, slots=True)
class DecodedAudio:
    """What was decoded: `num_audio_samples` at the codec's rate, int16 or float32, and what the source was."""

    num_audio_samples: int
    sample_bytes: int
    source_sample_rate_hz: int
    source_num_channels: int


class MonoWriter:
    """Takes the blocks of one source in order, and hands mono blocks [N] at `sample_rate_hz` to `write`.

    Raises `AudioRejectedError` on rates and channels that cannot be, lengths that `limits` do not let in, and
    samples that are not finite.
    """

    def __init__(
        self,
        source_rate_hz: int,
        num_channels: int,
        sample_rate_hz: int,
        limits: ClipLimits,
        write: Callable[[Pcm], object],
    ) -> None:
        _check_source(source_rate_hz, num_channels, sample_rate_hz)
        self._rate_hz = source_rate_hz
        self._num_channels = num_channels
        self._limits = limits
        self._write = write
        self._resampler = Resampler(source_rate_hz, sample_rate_hz, num_channels)
        self._num_written = 0
        self.num_source = 0

    def push(self, block: Pcm) -> None:
        """The next block [C, T]: float32, or int16 where the only channel goes on as it stands."""
        self.num_source += block.shape[1]
        self._limits.check_not_too_long(self.num_source, self._rate_hz)
        if block.dtype == np.int16:
            self._write(block[0])
            self._num_written += block.shape[1]
        else:
            self._hand_on(self._resampler.push(cast(NDArray[np.float32], block)))

    def finish(self, sample_bytes: int) -> DecodedAudio:
        """The source has ended."""
        self._limits.check_not_too_short(self.num_source, self._rate_hz)
        self._hand_on(self._resampler.finish())
        return DecodedAudio(self._num_written, sample_bytes, self._rate_hz, self._num_channels)

    def _hand_on(self, block: NDArray[np.float32]) -> None:
        if not block.size:
            return
        mono = to_mono(block)
        # Whatever was not finite in a channel is not finite here, and so is what overflowed on the way.
        if not _is_finite(mono):
            raise AudioRejectedError(RejectReason.NOT_FINITE, "the waveform holds NaN or infinity")
        self._write(mono)
        self._num_written += len(mono)


def _check_source(source_rate_hz: int, num_channels: int, sample_rate_hz: int) -> None:
    if not 1 <= num_channels <= CHANNELS_MAX:
        detail = f"the header says {num_channels} channels; allowed are 1 to {CHANNELS_MAX}"
        raise AudioRejectedError(RejectReason.ABSURD_HEADER, detail)
    if not SAMPLE_RATE_HZ_MIN <= source_rate_hz <= SAMPLE_RATE_HZ_MAX:
        allowed = f"{SAMPLE_RATE_HZ_MIN} to {SAMPLE_RATE_HZ_MAX} Hz"
        detail = f"the header says {source_rate_hz} Hz; allowed are {allowed}"
        raise AudioRejectedError(RejectReason.ABSURD_HEADER, detail)
    if num_kernel_values(source_rate_hz, sample_rate_hz) > KERNEL_VALUES_MAX:
        detail = f"{source_rate_hz} Hz has too small a common divisor with {sample_rate_hz} Hz to be resampled"
        raise AudioRejectedError(RejectReason.ABSURD_HEADER, detail)


def _is_finite(mono: NDArray[np.float32]) -> bool:
    # Squares cannot cancel each other, so a finite sum of them, which takes a tenth of the time, leaves no doubt.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.dot(mono, mono)) or np.isfinite(mono).all())
