"""The native memory of a replica, kept from creeping up with the number of clips and of batch shapes."""

from __future__ import annotations

import ctypes
import os

_M_MMAP_THRESHOLD = -3
"""glibc's malloc.h: mallopt(3)."""

OWN_MAP_BYTES_MIN = 64 << 10


ONEDNN_PRIMITIVES_MAX = 32
"""oneDNN keeps a primitive with its scratch memory for each shape of each convolution, 1024 by default: gigabytes
after some dozen batch shapes (measured: 157 MB a shape of two 30 s clips). At 32 memory is flat, speed within 5%."""


def steady_heap() -> None:
    """Give every allocation of 64 KiB and more a map of its own, which the system has back when it is freed.

    By default glibc raises that limit to 32 MiB as it goes; then waveforms and read blocks, made by one thread and
    dropped by another, leave holes in the heaps of a dozen threads. On another C library that part does nothing.
    """
    os.environ.setdefault(
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(ONEDNN_PRIMITIVES_MAX)
    )  # read at the first convolution
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, OWN_MAP_BYTES_MIN)
