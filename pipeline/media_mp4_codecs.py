"""What an MP4 file's sample description says of its codec (ISO/IEC 14496-12, 12.2, and QuickTime's versions)."""

from __future__ import annotations

import struct
from typing import Final

from pipeline import media_codecs
from pipeline.media_boxes import Box
from pipeline.media_track import Codec, unreadable

_ENTRY_BYTES: Final = 28
_AAC_TYPES: Final = frozenset({0x40, 0x66, 0x67, 0x68})
"""Object types of MPEG-4 AAC, and of MPEG-2 AAC main, LC and SSR."""
_DECODER_CONFIG, _DECODER_SPECIFIC, _ES = 0x04, 0x05, 0x03
_PCM: Final = {b"sowt": ("s", "le"), b"twos": ("s", "be"), b"fl32": ("f", "be"), b"fl64": ("f", "be")}
_PCM_BITS: Final = {b"fl32": 32, b"fl64": 64}
_LITTLE_ENDIAN: Final = 1
_LPCM_FLOAT, _LPCM_BIG, _LPCM_SIGNED = 1, 2, 4


def codec_of(stsd: Box) -> Codec:
    """The codec of the one sample description; raises `AudioRejectedError` on any that is not read."""
    version, num_entries = stsd.unpack("B3xI")
    entries = stsd.children(skip=8)
    if num_entries != 1 or len(entries) != 1:
        raise unreadable(f"its track has {num_entries} sample descriptions; exactly one is read")
    entry = entries[0]
    extra_bytes, num_channels, num_bits, rate_hz = _sound_fields(entry, version)
    inner = entry.children(skip=_ENTRY_BYTES + extra_bytes)
    described = {box.kind: box for box in inner}
    if b"wave" in described:
        described |= {box.kind: box for box in described[b"wave"].children()}
    if entry.kind == b"mp4a" and b"esds" in described:
        return Codec("aac", _aac_config(described[b"esds"].content(4)))
    if entry.kind == b"alac" and b"alac" in described:
        return media_codecs.alac(described[b"alac"].content(4))
    if entry.kind == b"fLaC" and b"dfLa" in described:
        return media_codecs.flac(described[b"dfLa"].content(4))
    if entry.kind == b"Opus" and b"dOps" in described:
        return media_codecs.opus(_opus_head(described[b"dOps"]))
    if entry.kind in _PCM:
        kind, order = _PCM[entry.kind]
        num_bits = _PCM_BITS.get(entry.kind, num_bits)
    elif entry.kind in (b"ipcm", b"fpcm") and b"pcmC" in described:
        flags, num_bits = described[b"pcmC"].unpack("BB", skip=4)
        kind, order = "s" if entry.kind == b"ipcm" else "f", "le" if flags & _LITTLE_ENDIAN else "be"
    elif entry.kind == b"lpcm" and extra_bytes == 36:
        num_bits, flags = entry.unpack("II", skip=_ENTRY_BYTES + 20)
        kind = "f" if flags & _LPCM_FLOAT else "s" if flags & _LPCM_SIGNED else "u"
        order = "be" if flags & _LPCM_BIG else "le"
    else:
        name = entry.kind.decode("latin-1")
        raise unreadable(f"its codec is {name!r}; allowed are mp4a (AAC), alac, fLaC, Opus and PCM")
    return media_codecs.pcm(media_codecs.pcm_name(kind, num_bits, order), num_bits, num_channels, rate_hz)


def opus_pre_skip_of(codec: Codec) -> int:
    """Samples at 48 kHz in front of the audio; 0 for other codecs."""
    return media_codecs.opus_pre_skip(codec.extradata) if codec.decoder == "libopus" else 0


def _sound_fields(entry: Box, stsd_version: int) -> tuple[int, int, int, int]:
    """(bytes more than the plain entry, channels, bits, rate in Hz)."""
    version, num_channels, num_bits, rate = entry.unpack("8xH6xHH4xI")
    if stsd_version or version == 0:
        return 0, num_channels, num_bits, rate >> 16
    if version == 1:
        return 16, num_channels, num_bits, rate >> 16
    rate_hz, num_channels = entry.unpack("dI", skip=_ENTRY_BYTES + 4)
    return 36, num_channels, num_bits, int(rate_hz) if 1 <= rate_hz < 2**31 else 0


def _opus_head(box: Box) -> bytes:
    """An OpusHead of the same fields, which are big-endian in an MP4 file ("Opus in ISOBMFF", 4.3.2)."""
    _, num_channels, pre_skip, rate_hz, gain, family = box.unpack("BBHIhB")
    head = struct.pack("<8sBBHIhB", b"OpusHead", 1, num_channels, pre_skip, rate_hz, gain, family)
    return head + box.content(struct.calcsize(">BBHIhB"))


def _aac_config(descriptors: bytes) -> bytes:
    """The AudioSpecificConfig in the descriptors of an `esds` box (ISO/IEC 14496-1, 7.2.6)."""
    position = 0
    while position < len(descriptors):
        tag, position = descriptors[position], position + 1
        size = 0
        for _ in range(4):
            if position == len(descriptors):
                break
            byte, position = descriptors[position], position + 1
            size = size << 7 | byte & 0x7F
            if not byte & 0x80:
                break
        content = descriptors[position : position + size]
        if tag == _DECODER_SPECIFIC and len(content) == size >= 2:
            return content
        if tag == _DECODER_CONFIG and content[:1] and content[0] not in _AAC_TYPES:
            raise unreadable(f"its codec is mp4a of object type {content[0]:#x}; allowed is AAC")
        # The inner descriptors stand behind the fields of these two.
        position += {_ES: 3, _DECODER_CONFIG: 13}.get(tag, size)
    raise unreadable("its AAC track has no AudioSpecificConfig")
