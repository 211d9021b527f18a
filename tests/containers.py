"""Audio files whose headers say what they should not, and one that no encoder writes."""

from __future__ import annotations

from pipeline.containers import _ogg_checksum

_FLAC_BLOCK_SAMPLES = 65535


def with_length(audio: bytes, more: int) -> bytes:
    """A WAV, FLAC, MP3 or Ogg file at 16 kHz, mono, whose header says so many samples more (or less)."""
    if audio.startswith(b"RIFF"):
        at = audio.index(b"data") + 4
        return _added(audio, at, 4, 2 * more, "little")
    if audio.startswith(b"fLaC"):
        return _added(audio, 18, 8, more, "big")
    if audio.startswith(b"OggS"):
        at, ticks = audio.rindex(b"OggS"), 3 if b"OpusHead" in audio[:64] else 1
        page = _added(audio[at:], 6, 8, ticks * more, "little")
        return audio[:at] + page[:22] + _ogg_checksum(page).to_bytes(4, "little") + page[26:]
    at = max(audio.find(b"Xing"), audio.find(b"Info"))
    return _added(audio, at + 8, 4, more // 576, "big")


def _added(audio: bytes, at: int, num_bytes: int, more: int, order: str) -> bytes:
    value = int.from_bytes(audio[at : at + num_bytes], order) + more
    return audio[:at] + value.to_bytes(num_bytes, order) + audio[at + num_bytes :]


def flac_of_silence(num_samples: int) -> bytes:
    """FLAC at 16 kHz, mono, 16 bits (RFC 9639): frames of 65,535 samples, each one constant, in 14 bytes or so."""
    fields = (16000 << 44) | (0 << 41) | (15 << 36) | num_samples
    sizes = min(num_samples, _FLAC_BLOCK_SAMPLES).to_bytes(2, "big") * 2 + bytes(6)
    frames = []
    for number in range(-(-num_samples // _FLAC_BLOCK_SAMPLES)):
        block_samples = min(_FLAC_BLOCK_SAMPLES, num_samples - number * _FLAC_BLOCK_SAMPLES)
        # A fixed block size, given in 16 bits; 16 kHz; mono, 16 bits.
        head = b"\xff\xf8\x75\x08" + chr(number).encode() + (block_samples - 1).to_bytes(2, "big")
        frame = head + _crc(head, 8, 0x07) + bytes(3)
        frames.append(frame + _crc(frame, 16, 0x8005))
    return b"fLaC\x80\0\0\x22" + sizes + fields.to_bytes(8, "big") + bytes(16) + b"".join(frames)


def _crc(data: bytes, num_bits: int, polynomial: int) -> bytes:
    value = 0
    for byte in data:
        value ^= byte << (num_bits - 8)
        for _ in range(8):
            value = (value << 1) ^ (polynomial if value >> (num_bits - 1) else 0)
            value &= (1 << num_bits) - 1
    return value.to_bytes(num_bits // 8, "big")
