"""The frames of an MP3 file, walked and counted: how long it is, and whether it is whole.

libsndfile reads as many samples as the Xing header says or, where there is none, as it guesses from the first
frame's bit rate: a variable-rate file without that header loses up to its half, and one joined to another loses
all of the second, without an error. So the frames are counted here, and a missing header is put in front.
Layouts: ISO/IEC 11172-3 and 13818-3 (frame headers), id3.org (ID3v2), the Xing and VBRI headers as the LAME and
Fraunhofer encoders write them. A file without such a header, cut exactly between two frames, looks whole.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final

_SYNC_WITHIN_BYTES: Final = 1 << 16
_XING_BYTES: Final = 12
"""Mark, flags and number of frames; what may follow them is not needed."""

_KBPS_1_1: Final = (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448)
_KBPS_1_2: Final = (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384)
_KBPS_1_3: Final = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBPS_2_1: Final = (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256)
_KBPS_2_23: Final = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES_HZ: Final = (44100, 48000, 32000)


@dataclass(frozen=True, slots=True)
class _Frame:
    """What a frame header says; `kind` does not change within a file, a Xing header stands `xing_after` its start."""

    num_bytes: int
    kind: tuple[int, int, int]
    xing_after: int


@dataclass(frozen=True, slots=True)
class Mp3Frames:
    """What the walk found: the first frame (of length-header or audio), the frames from it on, and the cut one."""

    first: int
    num_frames: int
    cut_at: int | None


def walk_mp3(audio: bytes) -> Mp3Frames | None:
    """The frames of an MP3 file, None where there are none; bytes between frames (tags, junk) are passed over."""
    first = _next_frame(audio, after_id3(audio, 0), None)
    if first is None:
        return None
    head = _parse_frame(audio, first)
    assert head is not None
    num_frames, position, end = 0, first, first
    next_position: int | None = first
    while next_position is not None:
        position = next_position
        while (frame := _parse_header(audio[position : position + 4])) is not None and frame.kind == head.kind:
            end = position + frame.num_bytes
            if end > len(audio):
                return Mp3Frames(first, num_frames, cut_at=position)
            num_frames += 1
            position = end
        next_position = _next_frame(audio, after_id3(audio, position), head.kind)
    is_cut = len(audio) - end < 4 and audio[end : end + 1] == b"\xff"
    return Mp3Frames(first, num_frames, cut_at=end if is_cut else None)


def is_mp3(audio: bytes) -> bool:
    """Whether libsndfile takes the file for MP3: a frame at its start or right after its ID3v2 tags."""
    return _parse_frame(audio, after_id3(audio, 0)) is not None


def missing_in_mp3(audio: bytes, found: Mp3Frames | None) -> str | None:
    """What of an MP3 file with these frames would not be decoded, in words; None when it tells of nothing."""
    if found is None:
        return None
    if found.cut_at is not None:
        return f"its last frame, at byte {found.cut_at}, is cut"
    num_declared = _num_frames_declared(audio, found.first)
    if num_declared is None:
        return None
    # Most encoders leave the frame that holds the header itself out of the count, some count it.
    if num_declared > found.num_frames:
        return f"its header says {num_declared} frames, {found.num_frames} are there"
    if num_declared < found.num_frames - 1:
        return f"its header says {num_declared} frames, but {found.num_frames} are there; the rest would be lost"
    return None


def with_length(audio: bytes, found: Mp3Frames | None) -> bytes:
    """`audio`, an MP3 file with these frames, with a Xing header that says their number where it has none."""
    if found is None or _num_frames_declared(audio, found.first) is not None:
        return audio
    head = _parse_frame(audio, found.first)
    assert head is not None
    start, num_frames = found.first, found.num_frames
    if _is_length_header(audio, head, start):
        start, num_frames = start + head.num_bytes, num_frames - 1
    return _length_frame(audio[found.first : found.first + 4], num_frames) + audio[start:]


def _length_frame(header: bytes, num_frames: int) -> bytes:
    """A silent frame like the one with `header`, but at a bit rate that leaves room, without checksum."""
    plain = bytes([header[0], header[1] | 1, header[2] & 0x0F | 0x80, header[3]])
    frame = _parse_frame(plain, 0)
    assert frame is not None
    xing = b"Xing" + (1).to_bytes(4, "big") + num_frames.to_bytes(4, "big")
    return (plain + bytes(frame.xing_after - 4) + xing).ljust(frame.num_bytes, b"\0")


def _num_frames_declared(audio: bytes, first: int) -> int | None:
    """The frames that a Xing header says, None where it says nothing or is not there."""
    frame = _parse_frame(audio, first)
    assert frame is not None
    xing_at = first + frame.xing_after
    xing = audio[xing_at : xing_at + _XING_BYTES]
    has_count = xing[:4] in (b"Xing", b"Info") and len(xing) == _XING_BYTES and xing[7] & 1
    return int.from_bytes(xing[8:12], "big") or None if has_count else None


def _is_length_header(audio: bytes, frame: _Frame, position: int) -> bool:
    """Whether a frame holds a header instead of audio, though none that libsndfile counts by."""
    vbri_at = position + 36
    xing_at = position + frame.xing_after
    return audio[xing_at : xing_at + 4] in (b"Xing", b"Info") or audio[vbri_at : vbri_at + 4] == b"VBRI"


def after_id3(audio: bytes, position: int) -> int:
    """The offset after the ID3v2 tags at `position`."""
    while audio[position : position + 3] == b"ID3" and len(audio) >= position + 10:
        size = 0
        for byte in audio[position + 6 : position + 10]:
            size = size << 7 | byte & 0x7F
        has_footer = audio[position + 5] & 0x10
        position += 10 + size + (10 if has_footer else 0)
    return position


def _next_frame(audio: bytes, position: int, kind: tuple[int, int, int] | None) -> int | None:
    """The next frame of that kind (None: any) that another follows, or that ends the file."""
    until = min(position + _SYNC_WITHIN_BYTES, len(audio))
    while (position := audio.find(b"\xff", position, until)) >= 0:
        frame = _parse_frame(audio, position)
        if frame is not None and kind in (None, frame.kind):
            after = _parse_frame(audio, position + frame.num_bytes)
            if position + frame.num_bytes == len(audio) or (after is not None and after.kind == frame.kind):
                return position
        position += 1
    return None


def _parse_frame(audio: bytes, position: int) -> _Frame | None:
    return _parse_header(audio[position : position + 4])


@functools.lru_cache(maxsize=4096)  # a file has some dozens of different headers, and 38 frames a second
def _parse_header(header: bytes) -> _Frame | None:
    """The frame that begins with these four bytes; None where none does."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    _, second, third, fourth = header
    version, layer = {3: 1, 2: 2, 0: 25}.get(second >> 3 & 3), 4 - (second >> 1 & 3)
    kbps_index, rate_index, padding = third >> 4, third >> 2 & 3, third >> 1 & 1
    if version is None or layer == 4 or rate_index == 3 or kbps_index in (0, 15):
        return None
    if version == 1:
        kbps = (_KBPS_1_1, _KBPS_1_2, _KBPS_1_3)[layer - 1][kbps_index - 1]
    else:
        kbps = (_KBPS_2_1 if layer == 1 else _KBPS_2_23)[kbps_index - 1]
    rate_hz = _RATES_HZ[rate_index] // {1: 1, 2: 2, 25: 4}[version]
    is_mono = fourth >> 6 == 3
    if layer == 1:
        num_bytes = (12_000 * kbps // rate_hz + padding) * 4
    else:
        num_samples = 576 if layer == 3 and version != 1 else 1152
        num_bytes = num_samples // 8 * 1000 * kbps // rate_hz + padding
    side_info_bytes = (17 if is_mono else 32) if version == 1 else (9 if is_mono else 17)
    return _Frame(num_bytes, (version, layer, rate_index), 4 + side_info_bytes)
