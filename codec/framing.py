"""Samples and frames: the arithmetic that ties a clip's length to its number of tokens."""

from __future__ import annotations


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
