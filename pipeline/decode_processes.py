"""The parent's side of the decoding processes: starting, feeding, watching and ending them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Final

from pipeline.decode_chunk import Chunk, Decoded, Refused, WorkerDiedError
from pipeline.decode_memory import SharedMemory
from pipeline.decode_messages import WorkerSettings, channel_pair, memory_file, receive, send
from pipeline.errors import DecoderUnavailableError
from pipeline.types import Content, RejectReason

STARTS_MAX: Final = 5
"""Starts in a row that may fail before decoding is given up."""
START_S_MAX: Final = 120.0
"""For a zygote to import its libraries, over a slow network file system too."""
_BACKOFF_S: Final = 0.2
_END_S_MAX: Final = 5.0
_STDERR_BYTES_SHOWN: Final = 2_000
_ONE_THREAD: Final = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass(frozen=True, slots=True)
class Worker:
    """A decoding process: our end of its channel, and the memory that it shares with us."""

    pid: int
    channel: socket.socket
    memory: SharedMemory


@dataclass(frozen=True, slots=True)
class _Zygote:
    """A started zygote; `channel` is our end of its channel, `stderr` a file that it writes to."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    stderr: IO[bytes]


class Nursery:
    """Starts and ends decoding workers by way of one zygote, which it starts again when it dies.

    Safe from several threads.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._zygote: _Zygote | None = None

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called: workers that vanish from then on are nobody's fault."""
        return self._closed.is_set()

    def start(self) -> None:
        """Start the zygote without waiting for it."""
        with self._lock:
            try:
                self._running_zygote()
            except OSError:
                return  # only a head start is lost: `spawn` tries again, and says what is wrong

    def spawn(self) -> Worker:
        """A new worker that is ready.

        Raises `DecoderUnavailableError` after `STARTS_MAX` failures in a row, or when closed.
        """
        with self._lock:
            fault = ""
            for attempt in range(STARTS_MAX):
                self._closed.wait(_BACKOFF_S * attempt)
                if self._closed.is_set():
                    raise _pool_is_closed()
                try:
                    return self._spawn()
                except (OSError, EOFError) as error:
                    fault = f"{type(error).__name__}: {error}\n{self._stop_zygote()}"
            raise DecoderUnavailableError(
                f"{STARTS_MAX} starts of a decoding process failed in a row; check that this host has memory and "
                f"process slots left, and that soundfile and torch can be imported. The last one said {fault}"
            )

    def end(self, pid: int) -> int | None:
        """Kill a worker unless it has died already; its wait status, None when its zygote is gone as well."""
        with self._lock:
            if self._zygote is None:
                return None
            try:
                send(self._zygote.channel, {"end": pid})
                status: int | None = receive(self._zygote.channel)[0]["status"]
            except (OSError, EOFError):
                self._stop_zygote()
                return None
            return status

    def close(self) -> None:
        """End the zygote and all workers, and wait for it."""
        self._closed.set()
        zygote = self._zygote
        if zygote is not None:
            _hang_up(zygote.channel)  # wakes a thread that waits for the zygote with the lock held
        with self._lock:
            self._stop_zygote()

    def _running_zygote(self) -> _Zygote:
        if self._zygote is None:
            self._zygote = _start_zygote(self._settings)
        return self._zygote

    def _spawn(self) -> Worker:
        zygote = self._running_zygote()
        ours, theirs = channel_pair()
        try:
            with theirs:
                send(zygote.channel, {"spawn": True}, theirs.fileno())
                answer, _ = receive(zygote.channel)
            if "error" in answer:
                raise OSError(answer["error"])
            ours.settimeout(START_S_MAX)
            memory = _shared_with(ours)
            receive(ours)  # its word that it is ready
        except BaseException:
            ours.close()
            raise
        return Worker(answer["pid"], ours, memory)

    def _stop_zygote(self) -> str:
        """End the zygote, which ends its workers; what it last wrote to its stderr."""
        zygote, self._zygote = self._zygote, None
        if zygote is None:
            return ""
        zygote.channel.close()
        try:
            zygote.process.wait(_END_S_MAX)
        except subprocess.TimeoutExpired:
            zygote.process.kill()
            zygote.process.wait()
        with zygote.stderr as stderr:
            stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - _STDERR_BYTES_SHOWN))
            return stderr.read().decode(errors="replace")


def _start_zygote(settings: WorkerSettings) -> _Zygote:
    ours, theirs = channel_pair()
    ours.settimeout(START_S_MAX)
    stderr = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the zygote
    # The same modules as here, however this process came to them (Ray, pytest, a script).
    modules = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    arguments = [str(theirs.fileno()), str(os.getpid()), json.dumps(asdict(settings))]
    try:
        with theirs:
            process = subprocess.Popen(  # noqa: S603  # our own module, no shell
                [sys.executable, "-P", "-m", "pipeline.decode_worker", *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=os.environ | _ONE_THREAD | {"PYTHONPATH": modules},
                process_group=0,  # out of the terminal's reach: Ctrl-C is for the parent, which drains
            )
    except BaseException:
        ours.close()
        stderr.close()
        raise
    return _Zygote(process, ours, stderr)


def _shared_with(channel: socket.socket) -> SharedMemory:
    """New memory, also given to the process at the channel's other end."""
    fd = memory_file("voxmill-decode")
    try:
        os.ftruncate(fd, SharedMemory.NUM_BYTES)
        send(channel, {"memory": True}, fd)
        return SharedMemory(fd)
    finally:
        os.close(fd)


class DecodingSeat:
    """A place for one worker at a time: a worker that died or hung is replaced. For one thread at a time."""

    def __init__(self, nursery: Nursery, timeout_s: float) -> None:
        self._nursery = nursery
        self._timeout_s = timeout_s
        self._worker: Worker | None = None

    def decode(self, files: Sequence[Content]) -> list[Decoded | Refused]:
        """What became of the first of `files`, at least of one: the first that costs a worker its life ends the list.

        That may have been no fault of the file (an operator, the kernel short of memory), and the result must
        not depend on it: so the file is tried alone in a fresh worker, and refused if that one ends as well.
        Raises `DecoderUnavailableError`.
        """
        outcomes, loss = self._attempt(files)
        if loss is None:
            return outcomes
        again, loss = self._attempt(files[len(outcomes) : len(outcomes) + 1])
        return outcomes + (again if loss is None else [loss])

    def start(self) -> Worker:
        """The worker, which is started if there is none. Raises `DecoderUnavailableError`."""
        if self._worker is None:
            self._worker = self._nursery.spawn()
        return self._worker

    def close(self) -> None:
        """Let go of the worker; the nursery ends it."""
        if self._worker is not None:
            self._worker.channel.close()
            self._worker = None

    def _attempt(self, files: Sequence[Content]) -> tuple[list[Decoded | Refused], Refused | None]:
        """The outcomes up to the loss of the worker, and how it was lost, if it was."""
        worker = self.start()
        chunk = Chunk(worker.channel, worker.memory, len(files), self._timeout_s)
        try:
            _hand_over(worker, files)
            chunk.wait()
        except TimeoutError:
            self._end_worker(worker)
            detail = f"decoding took longer than {self._timeout_s} s (decoding.timeout_s); tried twice"
            loss = Refused(RejectReason.DECODER_TIMEOUT, detail)
        except WorkerDiedError as error:
            self._end_worker(worker)
            loss = Refused(RejectReason.DECODER_CRASHED, f"the decoder failed with {error}; tried twice")
        except EOFError:
            loss = Refused(RejectReason.DECODER_CRASHED, f"{self._end_worker(worker)}; tried twice")
        except BaseException:
            self._end_worker(worker)  # answers that nobody took would be given to other files
            raise
        else:
            return chunk.outcomes, None
        chunk.take_what_is_left()
        return chunk.outcomes, loss if len(chunk.outcomes) < len(files) else None

    def _end_worker(self, worker: Worker) -> str:
        """How the worker ended, in words. Raises `DecoderUnavailableError` when it was ended by `close`."""
        self.close()
        status = self._nursery.end(worker.pid)
        if self._nursery.is_closed:
            raise _pool_is_closed()
        if status is None:
            return "the decoding process was lost"
        if os.WIFSIGNALED(status):
            return f"the decoding process was ended by {signal.Signals(os.WTERMSIG(status)).name}"
        return f"the decoding process ended with exit status {os.WEXITSTATUS(status)}"


def _hand_over(worker: Worker, files: Sequence[Content]) -> None:
    worker.memory.clear_answers()
    sizes = [len(file) for file in files]
    if sum(sizes) <= len(worker.memory.audio):
        offset = 0
        for file in files:
            worker.memory.audio[offset : offset + len(file)] = file
            offset += len(file)
        send(worker.channel, {"sizes": sizes})
        return
    with os.fdopen(memory_file("voxmill-audio"), "wb") as joined:
        for file in files:
            joined.write(file)
        joined.flush()
        send(worker.channel, {"sizes": sizes}, joined.fileno())


def _pool_is_closed() -> DecoderUnavailableError:
    return DecoderUnavailableError("the decoding processes have been ended: their pool was closed")


def _hang_up(channel: socket.socket) -> None:
    try:
        channel.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # already closed, or the other end is gone
