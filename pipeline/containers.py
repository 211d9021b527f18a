"""Whether an audio file is whole, by what its container says of itself.

libsndfile decodes a cut WAV, MP3, Vorbis or Opus file to its first part without an error, so the declared
length is compared here with the bytes that are there. (A cut FLAC file fails in the decoder itself.)
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from pipeline.containers_mp3 import Mp3Frames, after_id3, is_mp3, missing_in_mp3, walk_mp3, with_length

_OPEN_SIZE_MIN: Final = 0x7FFF0000
"""RIFF sizes from here up come from programs that wrote to a pipe (sox 0x7ffff000, ffmpeg 0xffffffff)."""

_RIFF_MAGICS: Final = (b"RIFF", b"RF64")
_NIST_HEADER_BYTES: Final = 1024
_AU_HEADER_BYTES: Final = 24
_OGG_HEADER_BYTES: Final = 27
_FLAC_START: Final = b"fLaC\x00\x00\x00\x22"
"""Mark, and the head of the first block, which holds the length: eight bytes that no audio has by chance."""
_FLAC_LENGTH_AT, _FLAC_LENGTH_BITS = 18, 36
_OGG_FIRST_PAGE, _OGG_LAST_PAGE = 2, 4


@dataclass(frozen=True, slots=True)
class SoundFile:
    """A file as libsndfile is to be shown it: its header mended where samples would be lost by it.

    `mp3` is what a walk over the frames of the file as it came has found, where libsndfile takes it for MP3.
    """

    audio: bytes
    mp3: Mp3Frames | None = None


def with_sound_header(audio: bytes) -> SoundFile:
    """`audio` with its header mended, if it must be."""
    if audio[:4] == b"RIFF":
        return SoundFile(_with_open_size(audio))
    if flac_length(audio) is not None:
        at = after_id3(audio, 0) + _FLAC_LENGTH_AT
        return SoundFile(b"".join((audio[:at], _flac_length_field(audio[at : at + 8], 0), memoryview(audio)[at + 8 :])))
    if is_mp3(audio):
        walked = walk_mp3(audio)
        return SoundFile(with_length(audio, walked), walked)
    return SoundFile(audio)


def missing_part(audio: bytes, container: str, mp3: Mp3Frames | None) -> str | None:
    """What would be lost by decoding `audio`, in words; None when it is whole or its container cannot tell.

    `container` is one of `CONTAINERS`, `mp3` as in `SoundFile`.
    """
    return missing_in_mp3(audio, mp3 or walk_mp3(audio)) if container == "MP3" else _CHECKS[container](audio)


def flac_length(audio: bytes) -> int | None:
    """The samples a channel that a FLAC file says it has (RFC 9639, 8.2), None for one that leaves it open.

    libsndfile reads no further than this, so a file that says too little would lose its end without an error: it is
    shown a header that leaves the length open (`with_sound_header`), and whoever reads counts.
    """
    start = after_id3(audio, 0)  # some taggers put MP3's tags in front
    head = audio[start : start + _FLAC_LENGTH_AT + 8]
    if head[:4] != b"fLaC" or len(head) < _FLAC_LENGTH_AT + 8 or head[4] & 0x7F:
        return None
    return int.from_bytes(head[_FLAC_LENGTH_AT:], "big") % (1 << _FLAC_LENGTH_BITS) or None


def _flac_length_field(field: bytes, num_samples: int) -> bytes:
    others = int.from_bytes(field, "big") >> _FLAC_LENGTH_BITS << _FLAC_LENGTH_BITS
    return (others | num_samples).to_bytes(8, "big")


def _with_open_size(audio: bytes) -> bytes:
    """A WAV header that was never completed (sizes 0, data after it) made to say "unknown".

    Recorders write such headers to a pipe, or when they are killed; libsndfile takes them for empty files.
    """
    riff_end = 8 + int.from_bytes(audio[4:8], "little")
    for name, start, size in _chunks(audio, "<"):
        if name == b"data":
            is_never_completed = size == 0 and len(audio) > start and riff_end <= start
            unknown = b"\xff\xff\xff\xff"
            return audio[: start - 4] + unknown + audio[start:] if is_never_completed else audio
    return audio


def _chunks(audio: bytes, byte_order: str) -> Iterator[tuple[bytes, int, int]]:
    """Name, offset of the content and declared size of each chunk of a RIFF or AIFF file."""
    position = 12
    while position + 8 <= len(audio):
        name, size = struct.unpack_from(f"{byte_order}4sI", audio, position)
        yield name, position + 8, size
        position += 8 + size + size % 2


def _missing_in_riff(audio: bytes) -> str | None:
    if audio[:4] not in _RIFF_MAGICS:  # RIFX: the same, big-endian
        return _missing_in_chunk(audio, b"data")
    long_size = None
    for name, start, size in _chunks(audio, "<"):
        if name == b"ds64" and size >= 16 and len(audio) >= start + 16:
            long_size = int.from_bytes(audio[start + 8 : start + 16], "little")
        if name == b"data":
            if size == 0xFFFFFFFF and long_size is not None:
                return _shortfall("data chunk", long_size, len(audio) - start)
            if size >= _OPEN_SIZE_MIN and len(audio) < _OPEN_SIZE_MIN:
                return None
            return _shortfall("data chunk", size, len(audio) - start)
    return None


def _missing_in_aiff(audio: bytes) -> str | None:
    return _missing_in_chunk(audio, b"SSND")


def _missing_in_chunk(audio: bytes, wanted: bytes) -> str | None:
    for name, start, size in _chunks(audio, ">"):
        if name == wanted:
            return _shortfall(f"{wanted.decode()} chunk", size, len(audio) - start)
    return None


def _missing_in_au(audio: bytes) -> str | None:
    if len(audio) < _AU_HEADER_BYTES:
        return "its header is cut"
    start, size = struct.unpack_from(">II" if audio[:4] == b".snd" else "<II", audio, 4)
    return None if size == 0xFFFFFFFF else _shortfall("header", size, len(audio) - start)


def _missing_in_nist(audio: bytes) -> str | None:
    """NIST SPHERE: a text header of 1,024 bytes with samples a channel, channels and bytes a sample."""
    names = rb"^(sample_count|channel_count|sample_n_bytes) -i (\d{1,18})\s*$"
    sizes = [int(value) for _, value in re.findall(names, audio[:_NIST_HEADER_BYTES], re.MULTILINE)]
    return _shortfall("header", math.prod(sizes), len(audio) - _NIST_HEADER_BYTES) if len(sizes) == 3 else None


def _missing_in_flac(audio: bytes) -> str | None:
    """A second file joined on. Cuts are no matter here: the decoder itself fails at them, and counts what came out."""
    second = audio.find(_FLAC_START, after_id3(audio, 0) + 4)
    return (
        f"a second FLAC stream is joined on at byte {second}, and only the first would be read" if second > 0 else None
    )


def _shortfall(part: str, num_bytes_declared: int, num_bytes_there: int) -> str | None:
    if num_bytes_declared <= num_bytes_there:
        return None
    return f"its {part} says {num_bytes_declared} bytes, {num_bytes_there} are there"


_MIRRORED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _ogg_checksum(page: bytes) -> int:
    """RFC 3533's CRC of a page, its own field taken as zero: zlib's, over mirrored bits, without its inversions."""
    mirrored = (page[:22] + bytes(4) + page[26:]).translate(_MIRRORED)
    crc = zlib.crc32(mirrored, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)


def _ogg_page(audio: bytes, position: int) -> tuple[int, int, int, int] | str:
    """(flags, serial number, page number, end) of the page that begins at `position`, or what is wrong with it."""
    header = audio[position : position + _OGG_HEADER_BYTES]
    if len(header) < _OGG_HEADER_BYTES:
        return "cut"
    flags, serial, page, checksum, num_lacings = struct.unpack("<5xB8xIIIB", header)
    lacings_at = position + _OGG_HEADER_BYTES
    lacings = audio[lacings_at : lacings_at + num_lacings]
    end = lacings_at + num_lacings + sum(lacings)
    if len(lacings) < num_lacings or end > len(audio):
        return "cut"
    if _ogg_checksum(audio[position:end]) != checksum:
        return "damaged: its checksum is wrong"  # a decoder drops it without an error, and the clip is shorter
    return flags, serial, page, end


def _missing_in_ogg(audio: bytes) -> str | None:
    """Walk the pages (RFC 3533): none missing, none cut, each logical stream ended, no second one after it."""
    next_pages: dict[int, int] = {}
    open_streams: set[int] = set()
    position = 0
    while position < len(audio):
        header = audio[position : position + _OGG_HEADER_BYTES]
        if not header.startswith(b"OggS"[: len(header)]):
            # Tags and padding after the last page are common and harmless.
            return f"no Ogg page stands at byte {position}, though its streams go on" if open_streams else None
        found = _ogg_page(audio, position)
        if isinstance(found, str):
            return f"the Ogg page at byte {position} is {found}"
        flags, serial, page, end = found
        if flags & _OGG_FIRST_PAGE:
            if next_pages and not open_streams:
                return f"a second Ogg stream is chained on at byte {position}, and only the first would be read"
            open_streams.add(serial)
        elif page != next_pages.get(serial, page):
            expected = next_pages[serial]
            return f"Ogg page {page} at byte {position} comes where page {expected} should: pages are missing"
        next_pages[serial] = page + 1
        if flags & _OGG_LAST_PAGE:
            open_streams.discard(serial)
        position = end
    return "its last Ogg page does not have the end-of-stream flag" if open_streams else None


_CHECKS: Final[dict[str, Callable[[bytes], str | None]]] = {
    "AIFF": _missing_in_aiff,
    "AU": _missing_in_au,
    "FLAC": _missing_in_flac,
    "NIST": _missing_in_nist,
    "OGG": _missing_in_ogg,
    "RF64": _missing_in_riff,
    "WAV": _missing_in_riff,
    "WAVEX": _missing_in_riff,
}

CONTAINERS: Final = frozenset(_CHECKS) | {"MP3"}
"""libsndfile's names of the containers that can be checked, and so are read."""
