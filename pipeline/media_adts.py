"""AAC in ADTS frames (ISO/IEC 13818-7, 6.2): no header of the whole, one frame behind the other.

Like an MP3 file without a length, one that is cut exactly between two frames looks whole.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.containers_mp3 import after_id3
from pipeline.media_track import ADTS_HEADER_BYTES, Codec, Track, adts_frame_bytes, truncated, unreadable

_FRAME_SAMPLES: Final = 1024
_RATES_HZ: Final = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
_ID3V1_BYTES: Final = 128


def adts_track(audio: bytes) -> Track:
    """The frames of an ADTS file; raises `AudioRejectedError` where one is cut, missing or unlike the first."""
    position = after_id3(audio, 0)
    end = len(audio)
    if audio[-_ID3V1_BYTES:].startswith(b"TAG") and len(audio) - position > _ID3V1_BYTES:
        end -= _ID3V1_BYTES
    kind = _kind(audio, position)
    offsets, sizes, num_blocks = [], [], 0
    while position < end:
        size = adts_frame_bytes(audio, position)
        if size is None:
            raise truncated(f"no ADTS frame stands at byte {position}, though {end - position} bytes are left")
        if position + size > end:
            raise truncated(f"its last frame, at byte {position}, is cut")
        if _kind(audio, position) != kind:
            raise unreadable(f"the frame at byte {position} has another rate, profile or number of channels")
        offsets.append(position)
        sizes.append(size)
        num_blocks += 1 + (audio[position + 6] & 3)
        position += size
    return Track(
        codec=Codec("aac"),
        offsets=np.array(offsets, np.int64),
        sizes=np.array(sizes, np.int64),
        ticks_hz=_RATES_HZ[kind[1]],
        declared=num_blocks * _FRAME_SAMPLES,
    )


def _kind(audio: bytes, position: int) -> tuple[int, int, int]:
    """Profile, index of the rate, and channels."""
    second, third = audio[position + 2 : position + ADTS_HEADER_BYTES][:2]
    return second >> 6, second >> 2 & 15, (second & 1) << 2 | third >> 6
