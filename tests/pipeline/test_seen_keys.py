from __future__ import annotations

import hashlib
import sys

import pytest

from pipeline.seen_keys import SeenKeys


def test_each_key_is_new_once() -> None:
    seen = SeenKeys()
    keys = [f"folder/clip-{index:06d}" for index in range(20_000)]
    assert all(seen.add(key) for key in keys)
    assert not any(seen.add(key) for key in keys)
    assert seen.add("another")


def test_keys_whose_digests_want_one_slot_stand_beside_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    class Digest:
        """The number that the key is."""

        def __init__(self, key: bytes, digest_size: int) -> None:
            self._digest = int(key).to_bytes(digest_size, "little")

        def digest(self) -> bytes:
            return self._digest

    monkeypatch.setattr(hashlib, "blake2b", Digest)
    seen = SeenKeys()
    digests = [0, *(1023 + 1024 * times for times in range(2000))]
    assert all(seen.add(str(digest)) for digest in digests)
    assert not any(seen.add(str(digest)) for digest in digests)


def test_a_key_takes_a_few_bytes() -> None:
    seen = SeenKeys()
    for index in range(100_000):
        seen.add(str(index))
    assert sys.getsizeof(seen._slots) <= 24 * 100_000
