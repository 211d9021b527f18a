"""What a decoder may do to its process, on the word of the audio's first bytes; see `DecoderPool(fault_hook=...)`."""

from __future__ import annotations

import ctypes
import os
import signal
import time

SEGFAULT = b"voxmill-test: read from address 0"
ABORT = b"voxmill-test: abort"
HANG = b"voxmill-test: hang"
ALLOCATE = b"voxmill-test: take all memory"
EAT = b"voxmill-test: take memory bit by bit"
RAISE = b"voxmill-test: raise an odd error"
SLOW = b"voxmill-test: take a while"
DIE_ONCE = b"voxmill-test: be killed, but once: "


def break_down(audio: bytes) -> None:
    """The hook: goes wrong as the audio says."""
    if audio == SEGFAULT:
        ctypes.string_at(0)
    elif audio == ABORT:
        os.abort()
    elif audio == HANG:
        signal.pause()
    elif audio == SLOW:
        time.sleep(0.4)
    elif audio == ALLOCATE:
        bytearray(1 << 33)  # there is that much address space, but not for a decoder
    elif audio == EAT:
        eaten = []
        while True:
            eaten.append(b"x" * (1 << 20))
    elif audio == RAISE:
        raise RuntimeError("an odd error")
    elif audio.startswith(DIE_ONCE):
        # The folder's name follows up to a newline, then the audio proper.
        marker = audio[len(DIE_ONCE) :].split(b"\n", 1)[0]
        if not os.path.exists(marker):  # noqa: PTH110  # bytes
            os.mkdir(marker)  # noqa: PTH102
            os.kill(os.getpid(), signal.SIGKILL)
