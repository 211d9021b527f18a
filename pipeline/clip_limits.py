"""Which lengths of audio are let in, and how a file is refused; the same whoever decodes it."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.types import RejectReason


class AudioRejectedError(Exception):
    """The audio cannot become a clip, for `reason`."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class ClipLimits:
    """Which lengths are let in."""

    clip_ms_min: float
    clip_s_max: float

    def check_not_too_long(self, num_samples: int, rate_hz: int) -> None:
        """Raises `AudioRejectedError` on what is too long already; there may be more of it."""
        if num_samples > self.clip_s_max * rate_hz:
            detail = f"it is {num_samples / rate_hz:.3f} s long or longer; decoding.clip_s_max allows {self.clip_s_max}"
            raise AudioRejectedError(RejectReason.TOO_LONG, detail)

    def check_not_too_short(self, num_samples: int, rate_hz: int) -> None:
        """Raises `AudioRejectedError` on what is too short, or empty."""
        if num_samples == 0:
            raise AudioRejectedError(RejectReason.EMPTY, "it holds no samples")
        length_ms = 1000 * num_samples / rate_hz
        if length_ms < self.clip_ms_min:
            detail = f"it is {length_ms:.3f} ms long; decoding.clip_ms_min asks for {self.clip_ms_min}"
            raise AudioRejectedError(RejectReason.TOO_SHORT, detail)
