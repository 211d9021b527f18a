"""The decoding processes. `python -m pipeline.decode_worker` is the zygote; it forks the workers.

The zygote imports everything once, so that a worker that takes the place of a dead one is there within
milliseconds. A worker decodes what it is handed, under a limit of memory, and answers sample by sample. All
end with their parent, and none listens to Ctrl-C: the parent drains them.
"""

from __future__ import annotations

import ctypes
import importlib
import io
import json
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

import numpy as np
import soundfile
import torch

from pipeline.audio import decode_audio
from pipeline.clip_limits import AudioRejectedError, ClipLimits
from pipeline.decode_memory import Answer, SharedMemory
from pipeline.decode_messages import DETAIL_CHARS_MAX, WorkerSettings, receive, send
from pipeline.types import Pcm, RejectReason

_PARENT_CHECK_MS: Final = 1_000
_PR_SET_PDEATHSIG: Final = 1
_SELF_TEST_RATE_HZ: Final = 8_000
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""glibc's malloc.h: mallopt(3)."""
_OWN_MAP_BYTES_MIN: Final = 4 << 20
_KEPT_BYTES_MAX: Final = 16 << 20
_ALIGNMENT: Final = 64

Hook = Callable[[bytes], None]


def main() -> None:
    """Run the zygote: argv holds the descriptor of its channel, its parent's pid, and the settings in JSON."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    _keep_pages()
    channel = socket.socket(fileno=int(sys.argv[1]))
    settings = WorkerSettings(**json.loads(sys.argv[3]))
    _test_decoding(settings)
    _Zygote(channel, int(sys.argv[2]), settings).serve()


class _Zygote:
    def __init__(self, channel: socket.socket, parent_pid: int, settings: WorkerSettings) -> None:
        self._channel = channel
        self._parent_pid = parent_pid
        self._settings = settings
        self._hook = _load_hook(settings.fault_hook)
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl
        self._workers: set[int] = set()

    def serve(self) -> None:
        """Fork and end workers on request, until the parent is gone."""
        poller = select.poll()
        poller.register(self._channel, select.POLLIN)
        # A fork of the parent may hold the channel's other end open beyond the parent's death.
        while os.getppid() == self._parent_pid:
            if poller.poll(_PARENT_CHECK_MS):
                try:
                    request, fd = receive(self._channel)
                except EOFError:
                    break
                send(self._channel, self._answer(request, fd))
        for pid in list(self._workers):
            self._end(pid)
        os._exit(0)  # torch takes a second to go in order, and holds nothing that must be saved

    def _answer(self, request: dict[str, Any], fd: int | None) -> dict[str, object]:
        if fd is None:
            return {"status": self._end(request["end"])}
        try:
            return {"pid": self._fork(fd)}
        except OSError as error:
            return {"error": f"a process could not be forked: {error}"}
        finally:
            os.close(fd)

    def _fork(self, fd: int) -> int:
        zygote_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._channel.close()
            self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == zygote_pid:
                _run_worker(socket.socket(fileno=fd), self._settings, self._hook)
            os._exit(1)
        self._workers.add(pid)
        return pid

    def _end(self, pid: int) -> int | None:
        """Kill a worker unless it has died already; its wait status, None for a worker of an earlier zygote.

        Only a child that was not waited for yet is sure to be still the owner of its pid.
        """
        if pid not in self._workers:
            return None
        self._workers.remove(pid)
        os.kill(pid, signal.SIGKILL)
        return os.waitpid(pid, 0)[1]


def _run_worker(channel: socket.socket, settings: WorkerSettings, hook: Hook | None) -> None:
    """Serve one channel until its other end is closed; never returns into the zygote's code."""
    # Codecs write warnings about damaged files to stderr, without end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        _, memory_fd = receive(channel)
        assert memory_fd is not None
        memory = SharedMemory(memory_fd)
        os.close(memory_fd)
        _limit_memory(settings.memory_bytes_max)
        decoder = _Decoder(channel, memory, settings, hook)
        send(channel, {"ready": True})
        while True:
            request, fd = receive(channel)
            decoder.decode_chunk(fd, request["sizes"])
    except EOFError:
        os._exit(0)
    except BaseException as error:  # whatever it was, this process is not to be trusted with another sample
        send(channel, {"died": f"{type(error).__name__}: {error}"[:DETAIL_CHARS_MAX]})
        os._exit(1)


class _Decoder:
    def __init__(
        self, channel: socket.socket, memory: SharedMemory, settings: WorkerSettings, hook: Hook | None
    ) -> None:
        self._channel = channel
        self._memory = memory
        self._pcm = _PcmArea(memory.pcm, self._hand_on)
        self._sample_rate_hz = settings.sample_rate_hz
        self._limits = ClipLimits(settings.clip_ms_min, settings.clip_s_max)
        self._memory_bytes_max = settings.memory_bytes_max
        self._hook = hook

    def decode_chunk(self, fd: int | None, sizes: list[int]) -> None:
        """Decode the files that stand one after the other, in the shared memory or in `fd`, and answer each."""
        self._pcm.clear()
        offset = 0
        with nullcontext() if fd is None else os.fdopen(fd, "rb") as files:
            for file_index, size in enumerate(sizes):
                if files is not None:
                    files.seek(offset)
                audio = bytes(self._memory.audio[offset : offset + size]) if files is None else files.read(size)
                try:
                    self._decode(file_index, audio)
                except AudioRejectedError as error:
                    self._refuse(error.reason, error.detail)
                except MemoryError:
                    detail = f"decoding takes more than {self._memory_bytes_max} bytes (decoding.memory_bytes_max)"
                    self._refuse(RejectReason.DECODER_OUT_OF_MEMORY, detail)
                offset += size
        self._tell({})

    def _decode(self, file_index: int, audio: bytes) -> None:
        if self._hook is not None:
            self._hook(audio)
        self._pcm.begin()
        decoded = decode_audio(audio, self._sample_rate_hz, self._limits, self._pcm.write)
        answer = Answer(
            file_index,
            *self._pcm.filled,
            num_audio_samples=decoded.num_audio_samples,
            sample_bytes=decoded.sample_bytes,
            source_sample_rate_hz=decoded.source_sample_rate_hz,
            source_num_channels=decoded.source_num_channels,
        )
        self._memory.add_answer(answer)

    def _refuse(self, reason: RejectReason, detail: str) -> None:
        self._tell({"reason": reason.value, "detail": detail[:DETAIL_CHARS_MAX]})

    def _hand_on(self) -> None:
        self._tell({"pcm": self._pcm.filled})
        receive(self._channel)  # the parent's word that it has taken this part, and all that was before

    def _tell(self, message: dict[str, object]) -> None:
        send(self._channel, {"num_answers": self._memory.num_answers, **message})


class _PcmArea:
    """The waveforms of a chunk, one after the other; `hand_on` is called to make room where they do not fit."""

    def __init__(self, area: memoryview, hand_on: Callable[[], None]) -> None:
        self._area = area
        self._hand_on = hand_on
        self._start = self._end = 0

    @property
    def filled(self) -> tuple[int, int]:
        """Where what was written of this clip stands, as far as the parent has not taken it."""
        return self._start, self._end

    def clear(self) -> None:
        """The parent has taken all."""
        self._start = self._end = 0

    def begin(self) -> None:
        """A clip begins, where values of any size may."""
        self._start = self._end = min(-(-self._end // _ALIGNMENT) * _ALIGNMENT, len(self._area))

    def write(self, block: Pcm) -> None:
        """The clip's next samples."""
        rest = block.data.cast("B")
        while rest:
            if self._end == len(self._area):
                self._hand_on()
                self.clear()
            piece = rest[: len(self._area) - self._end]
            self._area[self._end : self._end + len(piece)] = piece
            self._end += len(piece)
            rest = rest[len(piece) :]


def _keep_pages() -> None:
    """Let malloc keep what was freed, up to a bound: pages given anew for each clip cost as much as decoding it.

    Fixed bounds also keep what a clip may take from depending on those before it. On another C library: no difference.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _OWN_MAP_BYTES_MIN)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES_MAX)


def _limit_memory(num_bytes: int) -> None:
    """Let this process have so many bytes of address space more than now, and leave no core files."""
    num_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = num_pages * resource.getpagesize() + num_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _load_hook(name: str | None) -> Hook | None:
    if name is None:
        return None
    module, _, function = name.partition(":")
    hook: Hook = getattr(importlib.import_module(module), function)
    return hook


def _test_decoding(settings: WorkerSettings) -> None:
    """Decode and resample a short file, so that a broken installation fails at the start and not as rejects.

    It also leaves the libraries warm for all workers.
    """
    file = io.BytesIO()
    num_samples = _SELF_TEST_RATE_HZ // 10
    soundfile.write(file, np.zeros(num_samples, np.float32), _SELF_TEST_RATE_HZ, format="FLAC")
    limits = ClipLimits(clip_ms_min=0, clip_s_max=1)
    decoded = decode_audio(file.getvalue(), settings.sample_rate_hz, limits, lambda _: None)
    expected = -(-num_samples * settings.sample_rate_hz // _SELF_TEST_RATE_HZ)
    if decoded.num_audio_samples != expected:
        raise SystemExit(f"decoding is broken here: {decoded.num_audio_samples} samples of {expected} came out")


if __name__ == "__main__":
    main()
