"""Samples and frames: the arithmetic that ties a clip's length to its number of tokens, and tokens to what they see."""

from __future__ import annotations

from dataclasses import dataclass


def num_frames(num_audio_samples: int, frame_size: int) -> int:
    """Frames of a clip: `ceil(num_audio_samples / frame_size)`.

    Raises `ValueError` on a negative length or a frame size below 1.
    """
    if num_audio_samples < 0:
        raise ValueError(f"found {num_audio_samples} audio samples; a length is 0 or more")
    if frame_size < 1:
        raise ValueError(f"found a frame size of {frame_size} samples; it is 1 or more")
    return -(-num_audio_samples // frame_size)


def padded_length(num_audio_samples: int, frame_size: int) -> int:
    """Audio samples of a clip padded to whole frames. Raises `ValueError` like `num_frames`."""
    return num_frames(num_audio_samples, frame_size) * frame_size


@dataclass(frozen=True, slots=True)
class Reach:
    """What each output of convolutions sees: output i sees inputs `i * stride - before` to `i * stride + after`."""

    stride: int = 1
    before: int = 0
    after: int = 0

    @property
    def span(self) -> int:
        """Inputs that one output sees."""
        return self.before + 1 + self.after

    def then(self, following: Reach) -> Reach:
        """Of these convolutions and those behind them."""
        return Reach(
            self.stride * following.stride,
            self.before + self.stride * following.before,
            self.after + self.stride * following.after,
        )

    @property
    def look_ahead(self) -> int:
        """Inputs that must be known past the `stride` ones that are an output's own; below 0 where fewer will do."""
        return self.after + 1 - self.stride


@dataclass(frozen=True, slots=True)
class Delay:
    """How far the outputs of upsampling convolutions are behind: n inputs settle the first `n * rate - held` outputs.

    Output o sees inputs up to `(o + held) // rate`.
    """

    rate: int = 1
    held: int = 0

    def then(self, following: Delay) -> Delay:
        """Of these convolutions and those behind them."""
        return Delay(self.rate * following.rate, self.held * following.rate + following.held)
