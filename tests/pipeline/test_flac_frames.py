"""Frames of another depth than the stream's header says are found, so that none of their bits is lost."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from pipeline.audio import decode_audio
from pipeline.clip_limits import ClipLimits
from pipeline.flac_frames import has_16_bit_frames

RATE_HZ = 16_000
LIMITS = ClipLimits(clip_ms_min=0, clip_s_max=100)
HEADER_BYTES = 42
"""Of a FLAC file's mark and its first block of metadata."""


def samples(num: int = 20_000) -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-0.5, 0.5, num).astype(np.float32)


def flac(subtype: str, waveform: NDArray[np.float32] | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples() if waveform is None else waveform, RATE_HZ, format="FLAC", subtype=subtype)
    return file.getvalue()


def with_depth(audio: bytes, bits: int) -> bytes:
    """A FLAC file whose header says that samples have so many bits."""
    field = int.from_bytes(audio[18:26], "big")
    field = field & ~(31 << 36) | (bits - 1) << 36
    return audio[:18] + field.to_bytes(8, "big") + audio[26:]


def blocks_of(audio: bytes) -> list[Any]:
    blocks: list[Any] = []
    decode_audio(audio, RATE_HZ, LIMITS, blocks.append)
    return blocks


def test_frames_of_16_bits_come_out_as_int16() -> None:
    audio = flac("PCM_16")
    assert has_16_bit_frames(audio)
    (block,) = blocks_of(audio)
    assert block.dtype == np.int16
    assert np.array_equal(block, soundfile.read(io.BytesIO(audio), dtype="int16")[0])


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_24"])
def test_frames_of_another_depth_come_out_whole_under_a_header_that_says_16(subtype: str) -> None:
    lying = with_depth(flac(subtype), 16)
    assert soundfile.info(io.BytesIO(lying)).subtype == "PCM_16"
    assert not has_16_bit_frames(lying)
    (block,) = blocks_of(lying)
    assert block.dtype == np.float32
    assert np.array_equal(block, soundfile.read(io.BytesIO(lying), dtype="float32")[0])


def test_one_frame_of_another_depth_is_found_among_many() -> None:
    narrow, wide = flac("PCM_16", samples(40_960)), flac("PCM_24", samples(4_096))
    frames = narrow.index(b"\xff\xf8", HEADER_BYTES)
    assert has_16_bit_frames(narrow)
    assert not has_16_bit_frames(narrow + wide[wide.index(b"\xff\xf8", HEADER_BYTES) :])
    assert not has_16_bit_frames(narrow[:frames] + wide[wide.index(b"\xff\xf8", HEADER_BYTES) :] + narrow[frames:])


def test_bytes_that_only_look_like_a_header_do_not_count() -> None:
    narrow, wide = flac("PCM_16"), flac("PCM_24")
    start = wide.index(b"\xff\xf8", HEADER_BYTES)
    header = bytearray(wide[start : start + 16])
    assert not has_16_bit_frames(narrow + header)
    header[4] ^= 1  # the frame's number: the checksum is wrong now
    assert has_16_bit_frames(narrow + header)


@pytest.mark.parametrize("audio", [b"", b"\xff", b"\xff\xf8\xc9\x0a\x00", b"fLaC"])
def test_what_is_too_short_for_a_header_has_none(audio: bytes) -> None:
    assert has_16_bit_frames(audio)
