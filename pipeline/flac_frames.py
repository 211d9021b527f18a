"""How many bits the frames of a FLAC file say their samples have; each may say more than the file's own header.

Layout: RFC 9639, 9.1. Read as 16 bits, a frame of 24 would lose its last eight without an error.
"""

from __future__ import annotations

from typing import Final

import numpy as np

_OTHER_DEPTHS: Final = 0b011 << 1
"""Bits that no code of a depth has for "as in the stream's header" (000), which must be 16 then, and for 16 (100)."""

_SYNC_FIRST, _SYNC_SECOND = 0xFF, 0xF8
_HEADER_BYTES_MIN: Final = 6
_HEADER_BYTES_MAX: Final = 16


def has_16_bit_frames(audio: bytes) -> bool:
    """Whether no frame header says another depth than 16, or leaves it to a stream's header that says 16.

    Two bytes of audio may look like the start of a header; what looks like one counts when its checksum is right.
    """
    data = np.frombuffer(audio, np.uint8)
    at = np.flatnonzero(data[:-_HEADER_BYTES_MIN] == _SYNC_FIRST)
    at = at[data[at + 1] & 0xFE == _SYNC_SECOND]
    others = at[data[at + 3] & _OTHER_DEPTHS != 0]
    return not any(_is_header(audio[start : start + _HEADER_BYTES_MAX]) for start in others.tolist())


def _is_header(header: bytes) -> bool:
    """Whether the bytes begin with a frame header, by its checksum."""
    number_bytes = max(1, 8 - (header[4] ^ 0xFF).bit_length())
    block_size, rate = header[2] >> 4, header[2] & 0xF
    num_bytes = 4 + number_bytes + {6: 1, 7: 2}.get(block_size, 0) + {12: 1, 13: 2, 14: 2}.get(rate, 0)
    return len(header) > num_bytes and _crc8(header[:num_bytes]) == header[num_bytes]


def _crc8(data: bytes) -> int:
    """Of polynomial x^8 + x^2 + x + 1, from 0."""
    crc = 0
    for byte in data:
        crc = _CRC8[crc ^ byte]
    return crc


def _crc8_of(byte: int) -> int:
    for _ in range(8):
        byte = byte << 1 ^ (0x107 if byte & 0x80 else 0)
    return byte


_CRC8: Final = tuple(_crc8_of(byte) for byte in range(256))
