"""Matroska and WebM files (RFC 8794 and 9559): the blocks of their audio track, and what says that none is missing.

Times are of a millisecond as a rule, but what is cut off the codec's delay and padding is told in nanoseconds, so the
length is exact. A recorder that cannot seek back leaves the sizes of the segment and its clusters open, and says no
duration: then what comes to its end between two blocks is whole, as with a WAV file written to a pipe.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from pipeline import media_codecs
from pipeline.clip_limits import AudioRejectedError
from pipeline.media_lacing import laced_sizes
from pipeline.media_track import Codec, Track, truncated, unreadable
from pipeline.types import RejectReason

_NS_HZ: Final = 1_000_000_000
_EBML, _DOC_TYPE = 0x1A45DFA3, 0x4282
_SEGMENT, _INFO, _TRACKS, _CLUSTER = 0x18538067, 0x1549A966, 0x1654AE6B, 0x1F43B675
_TIMESTAMP_SCALE, _DURATION = 0x2AD7B1, 0x4489
_TRACK_ENTRY, _TRACK_NUMBER, _TRACK_TYPE, _CODEC_ID, _CODEC_PRIVATE = 0xAE, 0xD7, 0x83, 0x86, 0x63A2
_CODEC_DELAY, _CONTENT_ENCODINGS, _AUDIO = 0x56AA, 0x6D80, 0xE1
_RATE, _CHANNELS, _BIT_DEPTH = 0xB5, 0x9F, 0x6264
_TIMESTAMP, _SIMPLE_BLOCK, _BLOCK_GROUP, _BLOCK, _DISCARD_PADDING = 0xE7, 0xA3, 0xA0, 0xA1, 0x75A2
_LEVEL_1: Final = frozenset({_INFO, _TRACKS, _CLUSTER, 0x114D9B74, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367})
"""With SeekHead, Cues, Attachments, Chapters and Tags: what ends a cluster of open size."""
_AUDIO_TYPE: Final = 2
_NAME_BYTES_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class _Element:
    """Its content is from `start` to `end`; where its size is open, `end` is that of its parent."""

    kind: int
    start: int
    end: int
    is_open: bool


@dataclass(slots=True)
class _AudioEntry:
    number: int
    codec: Codec
    delay_ns: int


@dataclass(slots=True)
class _Blocks:
    """The packets of the track as they are found."""

    offsets: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    starts_s: array[float] = field(default_factory=lambda: array("d"))
    discard_ns: int = 0


def matroska_track(audio: bytes) -> Track:
    """The one audio track; raises `AudioRejectedError` where something is cut, missing or not read."""
    try:
        return _Walk(audio).track()
    except (IndexError, struct.error):
        raise truncated("an element of it is cut") from None


class _Walk:
    def __init__(self, audio: bytes) -> None:
        self._audio = audio
        self._scale_ns = 1_000_000
        self._duration = 0.0
        self._num_tracks = 0
        self._entry: _AudioEntry | None = None
        self._blocks = _Blocks()

    def track(self) -> Track:
        self._walk_segment(self._segment())
        if self._entry is None:
            raise truncated("it ends before its list of tracks")
        blocks, entry = self._blocks, self._entry
        starts_s = np.array(blocks.starts_s, np.float64)
        # Of another track the end may come later; and a first block that is late leaves that much out.
        is_told = self._duration and self._num_tracks == 1
        declared = int(self._duration * self._scale_ns) if is_told else 0
        if len(starts_s):
            declared -= int(starts_s[0] * _NS_HZ)
        return Track(
            codec=entry.codec,
            offsets=np.array(blocks.offsets, np.int64),
            sizes=np.array(blocks.sizes, np.int64),
            ticks_hz=_NS_HZ,
            start=entry.delay_ns,
            discard=blocks.discard_ns,
            declared=declared if is_told else None,
            is_exact=False,
            starts_s=starts_s,
            time_step_s=self._scale_ns / _NS_HZ,
        )

    def _segment(self) -> _Element:
        """The segment, which must be the last thing in the file but for padding."""
        elements = self._children(0, len(self._audio))
        head = next(elements)
        types = [self._name(child) for child in self._children(head.start, head.end) if child.kind == _DOC_TYPE]
        if head.kind != _EBML or types not in (["webm"], ["matroska"]):
            raise unreadable(f"its EBML document type is {types}; allowed are webm and matroska")
        found = None
        for element in elements:
            if element.kind in (_SEGMENT, _EBML) and found is not None:
                raise truncated(f"a second file is joined on at byte {element.start}, and only the first would be read")
            if element.kind == _SEGMENT:
                found = element
        if found is None:
            raise truncated("it ends before its segment")
        return found

    def _walk_segment(self, segment: _Element) -> None:
        for element in self._children(segment.start, segment.end):
            if element.kind == _INFO:
                self._read_info(element)
            elif element.kind == _TRACKS:
                self._read_tracks(element)
            elif element.kind == _CLUSTER:
                self._walk_cluster(element)
            elif element.is_open:
                raise unreadable(f"an element at byte {element.start} that is no cluster has an open size")
            elif segment.is_open and element.kind in (_EBML, _SEGMENT):
                raise truncated(f"a second file is joined on at byte {element.start}, and only the first would be read")

    def _read_info(self, info: _Element) -> None:
        for child in self._children(info.start, info.end):
            if child.kind == _TIMESTAMP_SCALE:
                self._scale_ns = self._uint(child)
            elif child.kind == _DURATION:
                self._duration = self._float(child)
        if not 1 <= self._scale_ns <= _NS_HZ or not 0 <= self._duration < 2.0**53:
            raise unreadable("its timestamp scale or duration cannot be")

    def _read_tracks(self, tracks: _Element) -> None:
        if self._entry is not None:
            return  # a repeated list, for recorders that break off
        entries = [child for child in self._children(tracks.start, tracks.end) if child.kind == _TRACK_ENTRY]
        self._num_tracks = len(entries)
        audio = [fields for fields in map(self._fields, entries) if self._number(fields, _TRACK_TYPE) == _AUDIO_TYPE]
        if len(audio) != 1:
            detail = f"it has {len(audio)} audio tracks; exactly one is read: take out the one that is meant"
            raise AudioRejectedError(RejectReason.AMBIGUOUS_AUDIO if audio else RejectReason.NO_AUDIO, detail)
        self._entry = self._audio_entry(audio[0])

    def _audio_entry(self, fields: dict[int, _Element]) -> _AudioEntry:
        if _CONTENT_ENCODINGS in fields:
            raise unreadable("its audio track is compressed or encrypted once more (ContentEncodings)")
        name = self._name(fields[_CODEC_ID]) if _CODEC_ID in fields else ""
        private = self._content(fields[_CODEC_PRIVATE]) if _CODEC_PRIVATE in fields else b""
        codec = self._codec(name, private, fields.get(_AUDIO))
        delay_ns = self._number(fields, _CODEC_DELAY)
        if codec.decoder == "libopus" and not delay_ns:  # files from before there was such a field
            delay_ns = media_codecs.opus_pre_skip(private) * _NS_HZ // media_codecs.OPUS_RATE_HZ
        if codec.decoder == "vorbis":  # its delay is the first packet's output, which is left out anyway
            delay_ns = 0
        return _AudioEntry(self._number(fields, _TRACK_NUMBER), codec, delay_ns)

    def _codec(self, name: str, private: bytes, audio: _Element | None) -> Codec:
        if name == "A_OPUS":
            return media_codecs.opus(private)
        if name == "A_VORBIS":
            return Codec("vorbis", private)
        if name.startswith("A_AAC") and private:
            return Codec("aac", private)
        if name == "A_FLAC":
            return media_codecs.flac(private[4:] if private[:4] == b"fLaC" else b"")
        if name == "A_ALAC":
            return media_codecs.alac(private)
        if name.startswith("A_PCM/") and audio is not None:
            return self._pcm(name, self._fields(audio))
        raise unreadable(f"its codec is {name!r}; allowed are Opus, Vorbis, AAC, FLAC, ALAC and PCM")

    def _pcm(self, name: str, fields: dict[int, _Element]) -> Codec:
        rate_hz = self._float(fields[_RATE]) if _RATE in fields else 8000.0
        num_channels = self._number(fields, _CHANNELS) or 1
        num_bits = self._number(fields, _BIT_DEPTH)
        kind, _, order = name.removeprefix("A_PCM/").partition("/")
        if (kind, order) not in {("INT", "LIT"), ("INT", "BIG"), ("FLOAT", "IEEE")} or not 1 <= rate_hz < 2**31:
            raise unreadable(f"its codec is {name!r} at {rate_hz} Hz, which is not read")
        # Matroska's PCM of 8 bits is unsigned.
        sign = "f" if kind == "FLOAT" else "u" if num_bits == 8 else "s"
        decoder = media_codecs.pcm_name(sign, num_bits, "be" if order == "BIG" else "le")
        return media_codecs.pcm(decoder, num_bits, num_channels, int(rate_hz))

    def _walk_cluster(self, cluster: _Element) -> None:
        timestamp = 0
        for element in self._children(cluster.start, cluster.end):
            if element.kind == _TIMESTAMP:
                timestamp = self._uint(element)
            elif element.kind == _SIMPLE_BLOCK:
                self._add_block(element, timestamp, 0)
            elif element.kind == _BLOCK_GROUP:
                fields = self._fields(element)
                if _BLOCK in fields:
                    padding = self._int(fields[_DISCARD_PADDING]) if _DISCARD_PADDING in fields else 0
                    self._add_block(fields[_BLOCK], timestamp, padding)

    def _add_block(self, block: _Element, timestamp: int, discard_ns: int) -> None:
        if self._entry is None:
            raise unreadable("its blocks come before its list of tracks")
        number, _, position = self._vint(block.start)
        if number != self._entry.number:
            return
        if position + 3 > block.end:
            raise truncated(f"a block of its track has {block.end - block.start} bytes, less than its header")
        relative, flags = struct.unpack_from(">hB", self._audio, position)
        if self._blocks.discard_ns or discard_ns < 0:
            raise unreadable("it discards samples elsewhere than at its end (DiscardPadding)")
        self._blocks.discard_ns = discard_ns
        start_s = (timestamp + relative) * self._scale_ns / _NS_HZ
        position, sizes = laced_sizes(self._audio, position + 3, block.end, flags >> 1 & 3)
        for size in sizes:
            self._blocks.offsets.append(position)
            self._blocks.sizes.append(size)
            self._blocks.starts_s.append(start_s)
            start_s = float("nan")
            position += size

    def _children(self, position: int, end: int) -> Iterator[_Element]:
        """The elements from `position` to `end`, each of which must end there too."""
        while position < end:
            at = position
            kind, position = self._id(position, end)
            size, num_bytes, position = self._vint(position)
            is_open = size == (1 << 7 * num_bytes) - 1
            if is_open and kind == _CLUSTER:
                element_end = self._end_of_open_cluster(position, end)
            else:
                element_end = end if is_open else position + size
            if element_end > end:
                there = f"{end - position} are there"
                raise truncated(f"its element {kind:#x} at byte {at} says {size} bytes, {there}")
            yield _Element(kind, position, element_end, is_open)
            position = element_end

    def _end_of_open_cluster(self, position: int, end: int) -> int:
        """Where the next element of the segment's own level begins."""
        while position < end:
            kind, content = self._id(position, end)
            if kind in _LEVEL_1 or kind in (_SEGMENT, _EBML):
                return position
            size, num_bytes, content = self._vint(content)
            if size == (1 << 7 * num_bytes) - 1 or content + size > end:
                raise truncated(f"its element {kind:#x} at byte {position} is cut")
            position = content + size
        return end

    def _id(self, position: int, end: int) -> tuple[int, int]:
        num_bytes = 9 - self._audio[position].bit_length()
        if num_bytes > 4:
            raise truncated(f"no element stands at byte {position}, though {end - position} bytes are left")
        return int.from_bytes(self._audio[position : position + num_bytes], "big"), position + num_bytes

    def _vint(self, position: int) -> tuple[int, int, int]:
        """The value of a number of variable size, its bytes, and the offset behind it."""
        first = self._audio[position]
        num_bytes = 9 - first.bit_length()
        if num_bytes > 8 or position + num_bytes > len(self._audio):
            raise truncated(f"the size of an element at byte {position} is cut or damaged")
        value = int.from_bytes(self._audio[position : position + num_bytes], "big")
        return value & (1 << 7 * num_bytes) - 1, num_bytes, position + num_bytes

    def _fields(self, parent: _Element) -> dict[int, _Element]:
        return {child.kind: child for child in self._children(parent.start, parent.end)}

    def _number(self, fields: dict[int, _Element], kind: int) -> int:
        return self._uint(fields[kind]) if kind in fields else 0

    def _content(self, element: _Element) -> bytes:
        return self._audio[element.start : element.end]

    def _name(self, element: _Element) -> str:
        return self._content(element)[:_NAME_BYTES_MAX].rstrip(b"\0").decode("latin-1")

    def _uint(self, element: _Element) -> int:
        return int.from_bytes(self._content(element)[:8], "big")

    def _int(self, element: _Element) -> int:
        return int.from_bytes(self._content(element)[:8], "big", signed=True)

    def _float(self, element: _Element) -> float:
        content = self._content(element)
        form = {0: "", 4: ">f", 8: ">d"}.get(len(content))
        if form is None:
            raise unreadable(f"a number of it has {len(content)} bytes; allowed are 4 and 8")
        return float(struct.unpack(form, content)[0]) if form else 0.0
