"""Which keys a shard has had, in a few bytes a key."""

from __future__ import annotations

import hashlib
from array import array
from typing import Final

_SLOTS_MIN: Final = 1 << 10
_EMPTY: Final = 0


class SeenKeys:
    """A set of keys by their 64-bit digests: 12 to 24 bytes a key, where a `set` of digests takes some hundred.

    Open addressing with linear probing (Knuth, The Art of Computer Programming, volume 3, section 6.4), at most two
    thirds full. Two keys of one digest are one key to it: a chance of 3e-8 in a shard of a million.
    """

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * _SLOTS_MIN))
        self._num_keys = 0

    def add(self, key: str) -> bool:
        """Take a key in; whether it is new."""
        digest = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") or 1
        slot = self._slot(self._slots, digest)
        if self._slots[slot] != _EMPTY:
            return False
        self._slots[slot] = digest
        self._num_keys += 1
        if 3 * self._num_keys > 2 * len(self._slots):
            self._grow()
        return True

    def _grow(self) -> None:
        slots = array("Q", bytes(2 * 8 * len(self._slots)))
        for digest in self._slots:
            if digest != _EMPTY:
                slots[self._slot(slots, digest)] = digest
        self._slots = slots

    @staticmethod
    def _slot(slots: array[int], digest: int) -> int:
        """Where the digest stands, or the empty slot for it."""
        mask = len(slots) - 1
        slot = digest & mask
        while slots[slot] not in (_EMPTY, digest):
            slot = (slot + 1) & mask
        return slot
