"""The memory that a decoding process and its parent share: audio files go in, waveforms come out.

It is mapped once by both, so its pages are there from the second clip on, and nothing is opened or sent for a clip but
a few words. Whoever may write where is settled by the messages: the parent fills `audio` before it asks for a chunk,
the process fills `pcm` and says how far, and does not write there again before the parent has taken it.
"""

from __future__ import annotations

import mmap
from typing import Final

AUDIO_BYTES: Final = 4 << 20
"""Chunks of more are sent as a file in memory."""

PCM_BYTES: Final = 4 << 20
"""Some 65 s of float32 at 16 kHz; of more, the parent takes one part after the other."""


class SharedMemory:
    """Both areas, mapped from the file in memory `fd`, which may be closed then."""

    NUM_BYTES: Final = AUDIO_BYTES + PCM_BYTES

    def __init__(self, fd: int) -> None:
        whole = memoryview(mmap.mmap(fd, self.NUM_BYTES))
        self.audio = whole[:AUDIO_BYTES]
        self.pcm = whole[AUDIO_BYTES:]
