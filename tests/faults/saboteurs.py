"""What is done to a run from inside its own processes; each function here is named by a `Sabotage` of `ground.py`.

What they do they write down, a line a deed, in a file that all processes of a run share: no row passes on a fault that
was not injected.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any, ClassVar

import torch

from codec.base import CodecInfo, Tokens

CALLS = ("list", "stat", "read", "read_range", "put", "put_file", "put_if_absent", "delete")
"""Of a store, all that reach it."""

DAY_S = 86400.0


def note(notes: str, line: str, *, once: bool = False, signal_name: str = "") -> bool:
    """Write a line down, with `once` unless it stands there; returns whether it was written.

    The signal is raised in this process before anybody can write the next line: a killed process did one deed.
    """
    with Path(notes).open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        if once and line in file.read().splitlines():
            return False
        file.write(f"{line}\n")
        file.flush()
        if signal_name == "SIGSTOP":
            fcntl.flock(file, fcntl.LOCK_UN)  # nobody waits for a sleeper
        if signal_name:
            signal.pthread_kill(threading.get_ident(), signal.Signals[signal_name])  # this thread goes no step further
        return True


def noted(notes: Path) -> list[str]:
    """The lines of a file of notes; none when nothing was done yet."""
    return notes.read_text().splitlines() if notes.exists() else []


def sabotage(function: str, notes: Path, **arguments: Any) -> tuple[str, str, dict[str, Any]]:
    """One of this file's functions for `ground.run(sabotage=...)`."""
    return __name__, function, {"notes": str(notes), **arguments}


def in_replicas(*sabotages: tuple[str, str, dict[str, Any]]) -> tuple[str, str, dict[str, Any]]:
    """The same in the process of each Ray replica, not in the driver's."""
    return __name__, "sabotage_replicas", {"sabotages": sabotages}


def apply(sabotages: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
    """Several at once."""
    for module, function, arguments in sabotages:
        getattr(importlib.import_module(module), function)(**arguments)


def sabotage_replicas(sabotages: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
    """In the process of each Ray replica, before it loads its codec."""
    import jobs.ray_executor as executor

    class Sabotaged(executor.ReplicaActor):  # in here, so that Ray sends it whole, with its list
        def start(self, setup: Any) -> Any:
            apply(sabotages)
            return super().start(setup)

    executor.ReplicaActor = Sabotaged


class _ScriptedStore:
    """A store that calls `deed` with the step's name right before and right after each call."""

    num_calls: ClassVar[Counter[str]] = Counter()

    def __init__(self, store: Any, deed: Any) -> None:
        self._store = store
        self._deed = deed

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name not in CALLS:
            return method

        def call(uri: str, *args: Any, **kwargs: Any) -> Any:
            path = re.sub(r"(?<=-)[0-9a-f]{8}(?=\.)|[0-9a-f]{32}", "*", re.sub(r".*/(in|out)(?=/|$)", r"\1", uri))
            place = f"{path} {args[0]}" if name == "read_range" else path
            self.num_calls[f"{name} {place}"] += 1
            step = f"{name} {place} #{self.num_calls[f'{name} {place}']}"
            self._deed(f"before {step}")
            try:
                result = method(uri, *args, **kwargs)
                return iter(list(result)) if name == "list" else result
            finally:
                self._deed(f"after {step}")

        return call


def at_store_calls(notes: str, only: str = "", signal_name: str = "") -> None:
    """Raise a signal in this process at the first step of that pattern at which no process has raised it yet.

    Without a signal, note each step. A step is a call to a store, by its name, its object with hashes as `*`, and its
    number in the process.
    """
    raised: list[str] = []

    def deed(step: str) -> None:
        if re.fullmatch(only or ".*", step) and not raised:
            was_new = note(notes, step, once=bool(signal_name), signal_name=signal_name)
            raised.extend([step] if signal_name and was_new else [])

    from pipeline import storage

    opened = storage.open_store
    storage.open_store = lambda *args: _ScriptedStore(opened(*args), deed)  # type: ignore[assignment]


class _ScriptedCodec:
    """A codec that goes wrong on clips of scripted lengths, and on batches above a size."""

    def __init__(self, codec: Any, notes: str, faults: Mapping[str, str], clips_max: int) -> None:
        self._codec = codec
        self._notes = notes
        self._faults = faults
        self._clips_max = clips_max

    @property
    def info(self) -> Any:
        return self._codec.info

    def encode(self, waveforms: torch.Tensor, lengths: torch.Tensor, **streams: Any) -> Any:
        if len(lengths) > self._clips_max:
            note(self._notes, f"out of memory at {len(lengths)} clips")
            raise torch.OutOfMemoryError(f"scripted: {len(lengths)} clips do not fit")
        tokens = self._codec.encode(waveforms, lengths, **streams)
        for length in lengths.tolist():
            fault = self._faults.get(str(length), "")
            deed = fault.removesuffix(" once")
            if fault and note(self._notes, f"{deed} at {length}", once=fault != deed):
                tokens = CODEC_FAULTS[deed](tokens, self.info)
        return tokens


def _returned(tokens: Tokens, _after: object) -> Tokens:
    return tokens


def _raised(error: Exception) -> Any:
    raise error


CODEC_FAULTS: dict[str, Callable[[Tokens, CodecInfo], Tokens]] = {
    "raise": lambda tokens, info: _raised(RuntimeError("scripted: the codec fails")),
    "exhaust": lambda tokens, info: _raised(MemoryError("scripted: the host has no memory left")),
    "never fits": lambda tokens, info: _raised(torch.OutOfMemoryError("scripted: this clip does not fit")),
    "hang": lambda tokens, info: _returned(tokens, threading.Event().wait()),
    "SIGKILL": lambda tokens, info: _returned(tokens, os.kill(os.getpid(), signal.SIGKILL)),
    "allocate": lambda tokens, info: _returned(tokens, [bytearray(b"1") * (1 << 28) for _ in range(8)]),
    "none": lambda tokens, info: replace(tokens, semantic=None),
    "frames": lambda tokens, info: replace(tokens, num_frames=tokens.num_frames - 1),
    "short": lambda tokens, info: replace(tokens, semantic=tokens.semantic[:, :-1]),
    "shape": lambda tokens, info: replace(tokens, acoustic=tokens.acoustic[:, :1]),
    "range": lambda tokens, info: replace(tokens, semantic=tokens.semantic + info.semantic_cardinality),
    "negative": lambda tokens, info: replace(tokens, acoustic=tokens.acoustic - info.acoustic_cardinalities[0]),
    "nan": lambda tokens, info: replace(tokens, semantic=torch.full(tokens.semantic.shape, torch.nan)),
}
"""What a codec does instead of returning its tokens."""


def with_codec(notes: str, faults: Mapping[str, str] | None = None, clips_max: int = 1 << 16) -> None:
    """Let the codec go wrong: `faults` by a clip's number of audio samples, ` once` behind those that pass."""
    from jobs import replica

    loaded = replica.load_codec
    replica.load_codec = lambda *args, **kwargs: _ScriptedCodec(  # type: ignore[assignment]
        loaded(*args, **kwargs), notes, faults or {}, clips_max
    )


def in_cgroup(notes: str, cgroup: str) -> None:
    """Move this process below a limit of memory: the kernel kills it when it asks for more; the first one alone."""
    if note(notes, "a process below the limit", once=True):
        Path(cgroup, "cgroup.procs").write_text(str(os.getpid()))


def with_decoder_hook(notes: str, signal_name: str) -> None:
    """Raise a signal in the decoding process of each sample, once a sample, before it is decoded."""
    from jobs import replica

    os.environ |= {"DECODER_NOTES": notes, "DECODER_SIGNAL": signal_name}
    pool = replica.DecoderPool
    replica.DecoderPool = lambda *args: pool(*args, fault_hook=f"{__name__}:decoder_hook")  # type: ignore[assignment,misc]


def decoder_hook(audio: bytes) -> None:
    """In a decoding process."""
    signal_name = os.environ["DECODER_SIGNAL"]
    note(os.environ["DECODER_NOTES"], f"{signal_name} at {len(audio)} bytes", once=True, signal_name=signal_name)


def with_jumping_clock(notes: str) -> None:
    """Let the wall clock jump a day forward, then a day back, each time that it is read."""
    true_time, jumps = time.time, cycle([("a day forward", DAY_S), ("a day back", -DAY_S)])

    def jump() -> float:
        what, jump_s = next(jumps)
        note(notes, what, once=True)
        return true_time() + jump_s

    time.time = jump


def with_faulty_decoder(notes: str) -> None:
    """Let decoding go wrong as the audio says, see `tests.faulty_decoding`."""
    from jobs import replica

    note(notes, "a faulty decoder")
    pool = replica.DecoderPool
    replica.DecoderPool = lambda *args: pool(*args, fault_hook="tests.faulty_decoding:break_down")  # type: ignore[assignment,misc]


def with_bug(notes: str, shard: str) -> None:
    """Reading this shard meets an error of no known kind."""
    from pipeline import worker

    opened = worker.RangeStream

    def open_stream(store: Any, found: Any, config: Any) -> Any:
        if found.uri.endswith(f"/{shard}"):
            note(notes, f"a bug met {shard}")
            raise RuntimeError(f"a bug met {shard}")
        return opened(store, found, config)

    worker.RangeStream = open_stream  # type: ignore[assignment,misc]
