"""Private data of codecs, in the shape that FFmpeg's decoders want it."""

from __future__ import annotations

import struct
from typing import Final

from pipeline.media_track import Codec, unreadable

OPUS_RATE_HZ: Final = 48_000
OPUS_HEAD_BYTES_MIN: Final = 19
_ALAC_COOKIE_BYTES_MIN: Final = 24


def opus(head: bytes) -> Codec:
    """Of an `OpusHead` (RFC 7845, 5.1)."""
    if len(head) < OPUS_HEAD_BYTES_MIN or head[:8] != b"OpusHead":
        raise unreadable("its Opus track has no OpusHead of 19 bytes or more")
    # The reference's library, as in libsndfile; FFmpeg's own decoder, `opus`, is another work.
    return Codec("libopus", head)


def opus_pre_skip(head: bytes) -> int:
    """Samples at 48 kHz in front of the audio."""
    return int(struct.unpack_from("<H", head, 10)[0])


def alac(cookie: bytes) -> Codec:
    """Of an `ALACSpecificConfig`, which FFmpeg reads in its MP4 box."""
    if len(cookie) < _ALAC_COOKIE_BYTES_MIN:
        raise unreadable(f"its ALAC track has {len(cookie)} bytes of description; at least 24 are needed")
    return Codec("alac", struct.pack(">I4sI", 12 + len(cookie), b"alac", 0) + cookie)


def flac(blocks: bytes) -> Codec:
    """Of a FLAC file's metadata blocks, the first of which is STREAMINFO, of 34 bytes (RFC 9639, 8)."""
    if len(blocks) < 38 or blocks[0] & 0x7F or int.from_bytes(blocks[1:4], "big") != 34:
        raise unreadable("its FLAC track has no STREAMINFO")
    return Codec("flac", blocks[4:38])


def flac_num_samples(codec: Codec) -> int | None:
    """The samples a channel that a FLAC track's STREAMINFO says; None where it is left open."""
    return int.from_bytes(codec.extradata[10:18], "big") % (1 << 36) or None


def pcm(decoder: str, num_bits: int, num_channels: int, sample_rate_hz: int) -> Codec:
    """Samples as they are; `decoder` is FFmpeg's name."""
    if num_bits % 8 or not 8 <= num_bits <= 64 or not 1 <= num_channels <= 255 or sample_rate_hz < 1:
        raise unreadable(f"PCM of {num_bits} bits, {num_channels} channels and {sample_rate_hz} Hz is not read")
    return Codec(decoder, b"", num_bits // 8 * num_channels, sample_rate_hz, num_channels)


def pcm_name(kind: str, num_bits: int, order: str) -> str:
    """FFmpeg's name: `kind` is s (signed), u (unsigned) or f (float), `order` le or be."""
    allowed = {"s": (8, 16, 24, 32), "u": (8,), "f": (32, 64)}[kind]
    if num_bits not in allowed:
        raise unreadable(f"PCM {kind}{num_bits} is not read; allowed are {kind} of {', '.join(map(str, allowed))} bits")
    return f"pcm_{kind}{num_bits}{'' if num_bits == 8 else order}"
