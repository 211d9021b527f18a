"""Memory whose pages are used again, for what a feed needs over and over: blocks of a shard, waveforms, batches.

A replica gives every large allocation back to the system as soon as it is freed (`jobs/heap.py`), and a page that is
touched for the first time costs far more than what is done with it: a second of 16-bit audio becomes float32 in 4 us of
a core where the pages are there, and in 40 where they are not. So blocks that nobody looks at any more are kept here,
up to a bound, for whoever needs that size next.
"""

from __future__ import annotations

import queue
import threading
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES_MIN: Final = 64 << 10
"""Smaller ones are left to malloc, which keeps their pages itself."""

BLOCK_BYTES_MAX: Final = 32 << 20
"""Larger ones are rare, 17 minutes of audio in one clip, and would fill what is kept."""

IDLE_BYTES_MAX: Final = 192 << 20


class Pages:
    """Blocks of a few sizes, four to a doubling; at most `idle_bytes_max` of them are kept while nobody uses them.

    Safe from several threads, and from a garbage collection in the middle of a call.
    """

    def __init__(self, idle_bytes_max: int = IDLE_BYTES_MAX) -> None:
        self._idle_bytes_max = idle_bytes_max
        self._lock = threading.Lock()
        self._returned: queue.SimpleQueue[NDArray[np.uint8]] = queue.SimpleQueue()
        self._idle: dict[int, list[NDArray[np.uint8]]] = {}
        self._idle_bytes = 0

    def take(self, num_bytes: int) -> NDArray[np.uint8]:
        """An array of so many bytes, its content anything; idle again when it and all views of it are gone."""
        if not BLOCK_BYTES_MIN <= num_bytes <= BLOCK_BYTES_MAX:
            return np.empty(num_bytes, np.uint8)
        size = _rounded(num_bytes)
        block = self._idle_block(size)
        lease = _Lease(np.empty(size, np.uint8) if block is None else block, self._returned)
        return np.asarray(lease)[:num_bytes]

    @property
    def idle_bytes(self) -> int:
        """What is kept and not in use."""
        with self._lock:
            self._sort_in()
            return self._idle_bytes

    def _idle_block(self, size: int) -> NDArray[np.uint8] | None:
        with self._lock:
            self._sort_in()
            # The size asked for last stands last, so that sizes out of use are dropped first.
            blocks = self._idle.pop(size, None)
            if blocks is None:
                return None
            block = blocks.pop()
            if blocks:
                self._idle[size] = blocks
            self._idle_bytes -= size
            return block

    def _sort_in(self) -> None:
        while not self._returned.empty():
            block = self._returned.get()
            self._idle.setdefault(block.nbytes, []).append(block)
            self._idle_bytes += block.nbytes
        while self._idle_bytes > self._idle_bytes_max:
            size, blocks = next(iter(self._idle.items()))
            blocks.pop()
            self._idle_bytes -= size
            if not blocks:
                del self._idle[size]


class _Lease:
    """What the views of a block stand on: numpy keeps it for as long as there is one."""

    def __init__(self, block: NDArray[np.uint8], returned: queue.SimpleQueue[NDArray[np.uint8]]) -> None:
        self._block = block
        self._returned = returned

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self._block.__array_interface__

    def __del__(self) -> None:
        self._returned.put(self._block)  # a queue of this kind may be filled from within any of its own calls


def _rounded(num_bytes: int) -> int:
    step = 1 << max(0, (num_bytes - 1).bit_length() - 3)
    return -(-num_bytes // step) * step


PAGES: Final = Pages()
"""Those of this process."""
