"""What becomes of a chunk of files in a decoding process, as its parent learns of it.

The process answers in the shared memory, file by file, and sends a message only where the parent has to act: at the end
of the chunk, for a file that was refused, and where a waveform fills the memory. So what it had done stands there still
when it dies, and a loss costs the file that it was about.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.decode_memory import Answer, SharedMemory
from pipeline.decode_messages import receive, send
from pipeline.pages import PAGES
from pipeline.types import Pcm, RejectReason

_WAIT_S_MIN: Final = 0.001
"""A socket takes 0 for "do not wait"."""
_SAMPLE_BYTES: Final = (2, 4)
"""Of int16 and float32."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded sample: mono `pcm` [num_audio_samples] at the codec's rate, as in `Clip`."""

    pcm: Pcm
    source_sample_rate_hz: int
    source_num_channels: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A sample that could not be decoded."""

    reason: RejectReason
    detail: str


class WorkerDiedError(EOFError):
    """A worker's last words."""


class Chunk:
    """The outcomes of a chunk's first files, as far as they are known; for one thread."""

    def __init__(self, channel: socket.socket, memory: SharedMemory, num_files: int, timeout_s: float) -> None:
        self.outcomes: list[Decoded | Refused] = []
        self._channel = channel
        self._memory = memory
        self._num_files = num_files
        self._timeout_s = timeout_s
        self._num_answers = self._position = 0
        self._parts: deque[NDArray[np.uint8]] = deque()

    def wait(self) -> None:
        """Until all outcomes are there.

        Raises `TimeoutError` when none has come about for `timeout_s`, so one file may take up to twice as long;
        `EOFError` when the worker is lost or says what cannot be.
        """
        num_done, deadline_s, is_over = -1, 0.0, False
        while not is_over:
            if self._num_done != num_done:
                num_done, deadline_s = self._num_done, time.monotonic() + self._timeout_s
            self._channel.settimeout(max(deadline_s - time.monotonic(), _WAIT_S_MIN))
            try:
                message, _ = receive(self._channel)
            except TimeoutError:
                if self._num_done == num_done:
                    raise
            else:
                is_over = self._heed(message)

    @property
    def _num_done(self) -> int:
        """Files that the worker is done with."""
        return len(self.outcomes) + self._memory.num_answers - self._num_answers

    def take_what_is_left(self) -> None:
        """Outcomes that a worker, which has ended, had no time to tell of."""
        with suppress(EOFError):
            self._take(self._memory.num_answers)

    def _heed(self, message: dict[str, Any]) -> bool:
        """Whether it was the last one."""
        if "died" in message:
            raise WorkerDiedError(message["died"])
        self._take(message["num_answers"])
        if "reason" in message:
            self._parts.clear()
            self.outcomes.append(Refused(RejectReason(message["reason"]), message["detail"]))
        elif "pcm" in message:
            self._parts.append(np.frombuffer(self._memory.pcm, np.uint8)[slice(*message["pcm"])].copy())
            self._position = 0
            send(self._channel, {"taken": True})
        elif len(self.outcomes) != self._num_files:
            raise EOFError(f"it answered {len(self.outcomes)} of {self._num_files} files")
        else:
            return True
        return False

    def _take(self, num_answers: int) -> None:
        """Copy the waveforms of the next answers, up to so many: the worker writes others there, and a clip lives long.

        One block for all: clips that come together mostly go together.
        """
        answers = self._memory.answers(self._num_answers, num_answers)
        if not answers:
            return
        self._check(answers)
        first = answers[0].start
        block = PAGES.take(answers[-1].end - first)
        block[:] = self._memory.pcm[first : answers[-1].end]
        for answer in answers:
            self._parts.append(block[answer.start - first : answer.end - first])
            if sum(map(len, self._parts)) != answer.num_audio_samples * answer.sample_bytes:
                raise EOFError("the waveform is not as long as announced")
            joined = _joined(self._parts)
            pcm: Pcm = joined.view(np.int16) if answer.sample_bytes == 2 else joined.view(np.float32)
            self._parts.clear()
            self.outcomes.append(Decoded(pcm, answer.source_sample_rate_hz, answer.source_num_channels))
        self._num_answers, self._position = num_answers, answers[-1].end

    def _check(self, answers: list[Answer]) -> None:
        """The worker may have run wild."""
        end = self._position
        for file_index, answer in enumerate(answers, start=len(self.outcomes)):
            stands_there = end <= answer.start <= answer.end <= len(self._memory.pcm)
            if answer.file_index != file_index or not stands_there or answer.sample_bytes not in _SAMPLE_BYTES:
                raise EOFError("what it announced cannot be")
            end = answer.end
        if len(self.outcomes) + len(answers) > self._num_files:
            raise EOFError("it announced more files than it was given")


def _joined(parts: deque[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """All parts in one array; each is let go of as it is copied, so that hours of audio are never held twice."""
    if len(parts) == 1:
        return parts[0]
    joined = np.empty(sum(map(len, parts)), np.uint8)
    filled = 0
    while parts:
        part = parts.popleft()
        joined[filled : filled + len(part)] = part
        filled += len(part)
    return joined
