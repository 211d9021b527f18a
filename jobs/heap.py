"""The C heap of a replica, kept from creeping up with the number of clips."""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3
"""glibc's malloc.h: mallopt(3)."""

OWN_MAP_BYTES_MIN = 64 << 10


def steady_heap() -> None:
    """Give every allocation of 64 KiB and more a map of its own, which the system has back when it is freed.

    By default glibc raises that limit to 32 MiB as it goes; then waveforms and read blocks, made by one thread and
    dropped by another, leave holes in the heaps of a dozen threads. Does nothing on another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, OWN_MAP_BYTES_MIN)
