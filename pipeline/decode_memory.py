"""The memory that a decoding process and its parent share: audio files go in, waveforms come out.

It is mapped once by both, so its pages are there from the second clip on, and nothing is opened or sent for a clip.
Whoever may write where is settled by the messages: the parent fills `audio` and forgets the answers before it asks for
a chunk, the process fills `pcm` and says what stands there, and does not write there again before the parent has taken
it.
"""

from __future__ import annotations

import mmap
from typing import Final, NamedTuple

from pipeline.decode_messages import CHUNK_SAMPLES_MAX

AUDIO_BYTES: Final = 4 << 20
"""Chunks of more are sent as a file in memory."""

PCM_BYTES: Final = 4 << 20
"""Some 65 s of float32 at 16 kHz; of more, the parent takes one part after the other."""

_VALUE_BYTES: Final = 8


class Answer(NamedTuple):
    """A decoded file: which one of the chunk, where in `pcm` its (last) samples stand, and what they are."""

    file_index: int
    start: int
    end: int
    num_audio_samples: int
    sample_bytes: int
    source_sample_rate_hz: int
    source_num_channels: int


_ANSWER_VALUES: Final = len(Answer._fields)


class SharedMemory:
    """The areas, mapped from the file in memory `fd`, which may be closed then."""

    NUM_BYTES: Final = AUDIO_BYTES + PCM_BYTES + (1 + CHUNK_SAMPLES_MAX * _ANSWER_VALUES) * _VALUE_BYTES

    def __init__(self, fd: int) -> None:
        whole = memoryview(mmap.mmap(fd, self.NUM_BYTES))
        self.audio = whole[:AUDIO_BYTES]
        self.pcm = whole[AUDIO_BYTES : AUDIO_BYTES + PCM_BYTES]
        self._answers = whole[AUDIO_BYTES + PCM_BYTES :].cast("q")  # their number, then their values

    @property
    def num_answers(self) -> int:
        """Files of this chunk that were decoded."""
        return self._answers[0]

    def clear_answers(self) -> None:
        """A new chunk begins."""
        self._answers[0] = 0

    def add_answer(self, answer: Answer) -> None:
        """Counted when it stands there, so that what a dead process leaves behind is whole."""
        at = 1 + self.num_answers * _ANSWER_VALUES
        for index, value in enumerate(answer, start=at):
            self._answers[index] = value
        self._answers[0] += 1

    def answers(self, first: int, end: int) -> list[Answer]:
        """Those from `first` to before `end`; fewer where there is no room for so many."""
        values = self._answers[1 + first * _ANSWER_VALUES : 1 + end * _ANSWER_VALUES].tolist()
        return [Answer(*values[at : at + _ANSWER_VALUES]) for at in range(0, len(values), _ANSWER_VALUES)]
