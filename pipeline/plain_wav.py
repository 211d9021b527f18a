"""The commonest file of all, a plain WAV of 16 bits, one channel and the codec's rate: nothing in it is to be decoded.

Its samples are looked at where they lie, here and not in a process of their own, since no decoder sees them. A file is
plain when every field of its header is what it must be and every byte is accounted for; all others go the common way
(`audio.py`), and a plain one comes out of both with the same bits, or the same reject.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.clip_limits import ClipLimits
from pipeline.types import Content

_HEADER: Final = struct.Struct("<4sI4s 4sIHHIIHH 4sI")
_FORMAT_BYTES: Final = 16
_PCM: Final = 1
_SAMPLE_BYTES: Final = 2


def plain_samples(audio: Content, sample_rate_hz: int, limits: ClipLimits) -> NDArray[np.int16] | None:
    """The samples of a plain WAV file at that rate, a view of it; None for any other file.

    Raises `AudioRejectedError` on a length that `limits` do not let in.
    """
    num_bytes = len(audio) - _HEADER.size
    if num_bytes <= 0 or num_bytes % _SAMPLE_BYTES:
        return None
    expected = (
        *(b"RIFF", len(audio) - 8, b"WAVE"),
        *(b"fmt ", _FORMAT_BYTES, _PCM, 1, sample_rate_hz, _SAMPLE_BYTES * sample_rate_hz, _SAMPLE_BYTES, 16),
        *(b"data", num_bytes),
    )
    if _HEADER.unpack_from(audio) != expected:
        return None
    samples = np.frombuffer(audio, "<i2", offset=_HEADER.size)
    limits.check_not_too_long(len(samples), sample_rate_hz)
    limits.check_not_too_short(len(samples), sample_rate_hz)
    return samples
