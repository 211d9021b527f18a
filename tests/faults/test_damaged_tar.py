"""Damaged archives: the shard fails by name, the clean ones beside it are as if nothing had been."""

from __future__ import annotations

import pytest

from tests.corpus import speech_shards
from tests.faults.matrix import row

WHOLE = speech_shards(5)["speech-000.tar"]


def with_byte(position: int, change: int) -> bytes:
    return WHOLE[:position] + bytes([WHOLE[position] ^ change]) + WHOLE[position + 1 :]


def judge(ground, damaged: bytes) -> None:
    ground.put_clean(2)
    ground.put({"damaged.tar": damaged})
    ended = ground.run()
    ground.check(ended, exit_code=1, failed={"damaged.tar": "TarError"}, says=["damaged.tar"])
    ended = ground.run()
    ground.check(ended, exit_code=1, failed={"damaged.tar": "given up by an earlier run"})


def second_header() -> int:
    """The offset of the second member's header."""
    size_bytes = int(WHOLE[124:135], 8)
    return 512 + -(-size_bytes // 512) * 512


@row("tar", "cut at a member boundary", "the shard ends where its second member would begin")
def test_cut_at_a_boundary(ground):
    judge(ground, WHOLE[: second_header()])


@row("tar", "cut in a header", "the shard ends 100 bytes into its second header")
def test_cut_in_a_header(ground):
    judge(ground, WHOLE[: second_header() + 100])


@row("tar", "cut in data", "the shard ends in the middle of its first member")
def test_cut_in_data(ground):
    judge(ground, WHOLE[: second_header() // 2])


@row("tar", "one header bit flipped", "a bit of the second header's name, size, checksum or type flag")
@pytest.mark.parametrize("field", [0, 130, 150, 156])
def test_flipped_header_bit(ground, field):
    judge(ground, with_byte(second_header() + field, 1))


@row("tar", "a hole of zeros", "the second header and the block behind it zeroed")
def test_hole_of_zeros(ground):
    start = second_header()
    judge(ground, WHOLE[:start] + bytes(1024) + WHOLE[start + 1024 :])


@row("tar", "two archives joined", "one shard behind another, each with its end")
def test_two_archives_joined(ground):
    judge(ground, WHOLE + speech_shards(5)["speech-001.tar"])


@row("tar", "trailing junk", "17 bytes that are no zeros behind the end")
def test_trailing_junk(ground):
    judge(ground, WHOLE + b"and something more")
