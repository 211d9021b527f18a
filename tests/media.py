"""Files of the `[media]` extra, written by PyAV's encoders or by hand."""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

KINDS = {
    "m4a-aac": ("ipod", "aac"),
    "m4a-alac": ("ipod", "alac"),
    "mp4-opus": ("mp4", "libopus"),
    "mp4-flac": ("mp4", "flac"),
    "mp4-pcm": ("mp4", "pcm_s16le"),
    "mp4-pcm-24": ("mp4", "pcm_s24be"),
    "mp4-pcm-float": ("mp4", "pcm_f32le"),
    "mov-pcm": ("mov", "pcm_s16le"),
    "mov-pcm-be": ("mov", "pcm_s16be"),
    "mov-aac": ("mov", "aac"),
    "webm-opus": ("webm", "libopus"),
    "mka-flac": ("matroska", "flac"),
    "mka-aac": ("matroska", "aac"),
    "mka-alac": ("matroska", "alac"),
    "mka-pcm": ("matroska", "pcm_s16le"),
    "mka-pcm-24": ("matroska", "pcm_s24le"),
    "mka-pcm-8": ("matroska", "pcm_u8"),
    "mka-pcm-double": ("matroska", "pcm_f64le"),
    "aac": ("adts", "aac"),
}
"""FFmpeg's muxer and encoder."""

PIECE_SAMPLES = 4_800


def encoded(
    kind: str,
    waveform: NDArray[np.float32],
    rate_hz: int,
    options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
) -> bytes:
    """A file of a waveform, float32 [C, T]."""
    muxer, codec = KINDS[kind]
    layout = {1: "mono", 2: "stereo"}[len(waveform)]
    # A path: to move the index to the front, FFmpeg opens the file again.
    with tempfile.NamedTemporaryFile() as file:
        with av.open(
            file.name, "w", format=muxer, options={"strict": "-2", "fflags": "+bitexact", **(options or {})}
        ) as out:
            out.metadata.update(metadata or {})
            stream = out.add_stream(codec, rate=rate_hz, layout=layout)
            assert isinstance(stream, av.AudioStream)
            stream.bit_rate = 128_000
            form = stream.codec_context.format.name
            for at in range(0, waveform.shape[1], PIECE_SAMPLES):
                piece = _as(form, waveform[:, at : at + PIECE_SAMPLES])
                frame = av.AudioFrame.from_ndarray(piece, format=form, layout=layout)
                frame.sample_rate, frame.pts = rate_hz, at
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        return Path(file.name).read_bytes()


def _as(form: str, waveform: NDArray[np.float32]) -> NDArray[np.generic]:
    values: NDArray[np.generic]
    if form.startswith("s16"):
        values = np.round(waveform * 32768).astype(np.int16)
    elif form.startswith("s32"):
        values = np.round(waveform.astype(np.float64) * 2**23).astype(np.int32) << 8
    elif form.startswith("u8"):
        values = (np.round(waveform * 128) + 128).astype(np.uint8)
    else:
        values = waveform.astype(np.float64 if form.startswith("dbl") else np.float32)
    return np.ascontiguousarray(values if form.endswith("p") else values.T.reshape(1, -1))


def element(kind: int, *content: bytes, size: int | None = None) -> bytes:
    """An EBML element; with another size than it has, or an open one (-1)."""
    body = b"".join(content)
    length = len(body) if size is None else size
    marked = (1 << 56) - 1 if length == -1 else length
    return kind.to_bytes((kind.bit_length() + 7) // 8, "big") + (1 << 56 | marked).to_bytes(8, "big") + body


def uint(kind: int, value: int) -> bytes:
    return element(kind, value.to_bytes(8, "big"))


def double(kind: int, value: float) -> bytes:
    return element(kind, struct.pack(">d", value))


@dataclass(frozen=True)
class Webm:
    """A WebM or Matroska file by hand: blocks of (start in ms, packets laced into one), several to a cluster."""

    codec_id: str
    private: bytes
    blocks: Sequence[tuple[int, Sequence[bytes]]]
    delay_ns: int = 0
    discard_ns: int = 0
    duration_ms: float | None = None
    is_open: bool = False
    lacing: int = 0
    blocks_a_cluster: int = 10
    audio: bytes = b""
    extra_tracks: bytes = b""
    entry_extra: bytes = b""

    def __bytes__(self) -> bytes:
        head = element(0x1A45DFA3, element(0x4282, b"webm"))
        info = element(0x1549A966, uint(0x2AD7B1, 1_000_000), self._duration())
        entry = element(
            0xAE, uint(0xD7, 1), uint(0x83, 2), element(0x86, self.codec_id.encode()), element(0x63A2, self.private),
            uint(0x56AA, self.delay_ns), element(0xE1, self.audio), self.entry_extra,
        )  # fmt: skip
        tracks = element(0x1654AE6B, entry, self.extra_tracks)
        firsts = range(0, len(self.blocks), self.blocks_a_cluster)
        clusters = [self._cluster(first) for first in firsts]
        return head + element(0x18538067, info, tracks, *clusters, size=-1 if self.is_open else None)

    def _duration(self) -> bytes:
        return b"" if self.duration_ms is None else double(0x4489, self.duration_ms)

    def _cluster(self, first: int) -> bytes:
        blocks = self.blocks[first : first + self.blocks_a_cluster]
        base = blocks[0][0]
        written = []
        for index, (start_ms, packets) in enumerate(blocks, start=first):
            flags = self.lacing << 1
            content = b"\x81" + struct.pack(">hB", start_ms - base, flags) + laced(packets, self.lacing)
            if index == len(self.blocks) - 1 and self.discard_ns:
                padding = element(0x75A2, self.discard_ns.to_bytes(8, "big", signed=True))
                written.append(element(0xA0, element(0xA1, content), padding))
            else:
                written.append(element(0xA3, content))
        return element(0x1F43B675, uint(0xE7, base), *written, size=-1 if self.is_open else None)


def laced(packets: Sequence[bytes], lacing: int) -> bytes:
    if lacing == 0:
        (only,) = packets
        return only
    sizes = [len(packet) for packet in packets]
    head = bytes([len(packets) - 1])
    if lacing == 1:
        head += b"".join(b"\xff" * (size // 255) + bytes([size % 255]) for size in sizes[:-1])
    elif lacing == 3 and len(sizes) > 1:
        head += (sizes[0] | 0x4000).to_bytes(2, "big")
        head += b"".join((size - before + 0x1FFF | 0x4000).to_bytes(2, "big") for before, size in pairwise(sizes[:-1]))
    return head + b"".join(packets)


def ogg_packets(ogg: bytes) -> list[bytes]:
    """All packets of an Ogg file with one stream, headers too (RFC 3533)."""
    packets, rest, position = [], b"", 0
    while position < len(ogg):
        lacings = ogg[position + 27 : position + 27 + ogg[position + 26]]
        position += 27 + len(lacings)
        for lacing in lacings:
            rest += ogg[position : position + lacing]
            position += lacing
            if lacing < 255:
                packets.append(rest)
                rest = b""
    return packets


def in_webm(audio: bytes) -> bytes:
    """The packets of another file in a WebM file, as FFmpeg moves them."""
    file = io.BytesIO()
    with av.open(io.BytesIO(audio)) as source, av.open(file, "w", format="webm") as out:
        (stream,) = source.streams.audio
        target = out.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = target
                out.mux(packet)
    return file.getvalue()


def with_box(audio: bytes, path: Sequence[bytes], change: Callable[[bytes], bytes]) -> bytes:
    """The file with the content of one box changed, and the sizes of those around it; other offsets stay."""
    return _with_box(audio, path, change)


def _with_box(content: bytes, path: Sequence[bytes], change: Callable[[bytes], bytes]) -> bytes:
    position = 0
    while position < len(content):
        size, kind = struct.unpack_from(">I4s", content, position)
        if kind == path[0]:
            inner = content[position + 8 : position + size]
            inner = _with_box(inner, path[1:], change) if path[1:] else change(inner)
            return content[:position] + struct.pack(">I4s", 8 + len(inner), kind) + inner + content[position + size :]
        position += size
    raise KeyError(path[0])
