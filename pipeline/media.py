"""The bytes of an M4A, AAC, WebM or Matroska file -> a mono waveform: packets decoded by FFmpeg, through PyAV.

PyAV is the extra `[media]`; without it such files are rejects that say so. Runs in the decoding processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from math import isnan, nan
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.clip_limits import AudioRejectedError, ClipLimits
from pipeline.media_track import Codec, Container, Track, truncated, unreadable
from pipeline.media_walk import HAS_MEDIA, walk
from pipeline.mono import DecodedAudio, MonoWriter
from pipeline.types import Pcm, RejectReason

if HAS_MEDIA:
    import av
    from av.codec.codec import UnknownCodecError

_OPTIONS: Final = {
    # Any fault is an error, where FFmpeg would go on as well as it can.
    "err_detect": "crccheck+bitstream+buffer+explode",
    # The same whatever the processor, as far as FFmpeg offers it.
    "flags": "+bitexact",
    # Nothing is cut off that was not told here.
    "flags2": "+skip_manual",
    # libopus would round to 16 bits.
    "request_sample_fmt": "flt",
}
_PCM_BYTES: Final = 1 << 16
_SAMPLES_HELD_MAX: Final = 1 << 20
"""Of padding at the end, which is known as such only then; an Opus packet has at most 5,760."""
_SCALES: Final = {"u8": (128, 1 / 128), "s16": (0, 1 / 32768), "s32": (0, 1 / 2147483648)}


def decode_media(
    audio: bytes, container: Container, sample_rate_hz: int, limits: ClipLimits, write: Callable[[Pcm], object]
) -> DecodedAudio:
    """As `decode_audio`, for a file of that container; blocks are float32.

    Raises `AudioRejectedError`, maybe after blocks were written; `MemoryError` when memory ends.
    """
    if not HAS_MEDIA:
        detail = f"{container} files are read with PyAV, which is not here: pip install 'voxmill[media]'"
        raise unreadable(detail)
    track = walk(audio, container)
    if track.declared is not None and track.is_exact:
        length = (track.declared if track.end is None else track.end) - track.start
        limits.check_not_too_long(length, track.ticks_hz)
    try:
        return _decoded(audio, track, sample_rate_hz, limits, write)
    except av.error.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise MemoryError(str(error)) from None
        raise unreadable(f"FFmpeg: {error.strerror}") from None
    except UnknownCodecError:  # of a build that was made with less
        raise unreadable(f"the FFmpeg here has no decoder {track.codec.decoder}") from None


def _decoded(
    audio: bytes, track: Track, sample_rate_hz: int, limits: ClipLimits, write: Callable[[Pcm], object]
) -> DecodedAudio:
    decoding = _Decoding(audio, track)
    frames = decoding.frames()
    first = next(frames, None)
    if first is None:
        raise AudioRejectedError(RejectReason.EMPTY, "it holds no samples")
    writer = MonoWriter(first.sample_rate, first.layout.nb_channels, sample_rate_hz, limits, write)
    for block in _audio_of(track, first.sample_rate, map(_floats, chain((first,), frames))):
        writer.push(block)
    decoding.check_length()
    return writer.finish(np.dtype(np.float32).itemsize)


class _Decoding:
    """The packets of a track through FFmpeg's decoder, and what came out compared with what the container says."""

    def __init__(self, audio: bytes, track: Track) -> None:
        self._audio = audio
        self._track = track
        self._context = _context(track.codec)
        self._kind: tuple[int, int, str] | None = None
        self._num_decoded = self._num_last = self._num_largest = 0
        self._drift_s: float | None = None

    def frames(self) -> Iterator[av.AudioFrame]:
        """What is decoded, in order; raises `AudioRejectedError` where packets are missing or change their kind."""
        packets = self._packets()
        if self._track.codec.decoder == "vorbis" and (first := next(packets, None)) is not None:
            # Only what overlaps with a packet before is audio (Vorbis I, 4.3.8); FFmpeg gives its other half too.
            self._context.decode(av.Packet(first[1]))
        for start_s, packet in packets:
            self._check_time(start_s)
            yield from self._count(self._context.decode(av.Packet(packet)))
        yield from self._count(self._context.decode(None))

    def check_length(self) -> None:
        """Raises `AudioRejectedError` unless as much came out as the container says."""
        track, rate_hz = self._track, self._rate_hz
        if track.declared is None:
            return
        if not track.is_exact:
            least = (
                track.declared * rate_hz // track.ticks_hz - self._num_largest - int(2 * track.time_step_s * rate_hz)
            )
        else:
            # A clock that is coarser than the samples may have been rounded up.
            least = (track.declared - (track.ticks_hz < rate_hz)) * rate_hz // track.ticks_hz
            if self._num_decoded - self._num_largest > least:
                detail = f"its tables say {least} samples, but {self._num_decoded} came out; the rest would be lost"
                raise truncated(detail)
        if self._num_decoded < least:
            raise truncated(f"it says {least} samples or more, {self._num_decoded} came out")

    @property
    def _rate_hz(self) -> int:
        return self._kind[0] if self._kind else 0

    def _packets(self) -> Iterator[tuple[float, bytes]]:
        """Start in seconds (NaN: not told) and bytes of each packet; of PCM, in pieces."""
        track, step = self._track, self._track.codec.frame_bytes
        piece_bytes = _PCM_BYTES // step * step if step else 0
        starts_s = chain(track.starts_s, repeat(nan)) if track.starts_s is not None else repeat(nan)
        for offset, size, start_s in zip(track.offsets.tolist(), track.sizes.tolist(), starts_s, strict=False):
            if not size or (step and size % step):
                raise unreadable(f"a packet has {size} bytes; it must have some, of PCM a multiple of {step or 1}")
            for at in range(0, size, piece_bytes or size):
                end = min(at + piece_bytes, size) if piece_bytes else size
                yield nan if at else start_s, self._audio[offset + at : offset + end]

    def _check_time(self, start_s: float) -> None:
        """A packet that is missing makes the next ones late by what it would have held."""
        if isnan(start_s) or not self._rate_hz:
            return
        drift_s = start_s - self._num_decoded / self._rate_hz
        allowed_s = self._num_last / self._rate_hz / 2 + 2 * self._track.time_step_s
        if self._drift_s is not None and abs(drift_s - self._drift_s) > allowed_s:
            detail = f"a packet at {start_s:.3f} s comes {1000 * (drift_s - self._drift_s):.0f} ms from where it should"
            raise truncated(f"{detail}: packets are missing")
        self._drift_s = drift_s

    def _count(self, frames: list[av.AudioFrame]) -> list[av.AudioFrame]:
        for frame in frames:
            kind = frame.sample_rate, frame.layout.nb_channels, frame.format.name
            if kind != (self._kind or kind):
                raise unreadable(f"its rate, channels or sample format change from {self._kind} to {kind}")
            if frame.is_corrupt:
                raise unreadable("a packet of it is corrupt")
            self._kind = kind
        self._num_last = sum(frame.samples for frame in frames)
        self._num_largest = max(self._num_largest, self._num_last)
        self._num_decoded += self._num_last
        return frames


def _context(codec: Codec) -> av.AudioCodecContext:
    context = av.CodecContext.create(codec.decoder, "r")
    assert isinstance(context, av.AudioCodecContext)
    context.thread_count = 1
    context.options = _OPTIONS
    if codec.extradata:
        context.extradata = codec.extradata
    if codec.frame_bytes:
        context.sample_rate = codec.sample_rate_hz
        context.layout = f"{codec.num_channels} channels"
    return context


def _audio_of(track: Track, rate_hz: int, blocks: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """Of decoded blocks [C, T], the audio: without delay and padding."""
    start, discard = (_rounded(ticks * rate_hz, track.ticks_hz) for ticks in (track.start, track.discard))
    end = _rounded(track.end * rate_hz, track.ticks_hz) if track.end is not None else None
    if discard > _SAMPLES_HELD_MAX:
        raise unreadable(f"it says that its last {discard} samples are padding; allowed are {_SAMPLES_HELD_MAX}")
    held: deque[NDArray[np.float32]] = deque()
    num_seen = num_held = 0
    for block in blocks:
        audio = block[:, max(start - num_seen, 0) : None if end is None else max(end - num_seen, 0)]
        num_seen += block.shape[1]
        held.append(audio)
        num_held += audio.shape[1]
        while held and num_held - held[0].shape[1] >= discard:
            num_held -= held[0].shape[1]
            yield held.popleft()
    while num_held > discard:
        audio = held.popleft()[:, : num_held - discard]
        num_held -= audio.shape[1]
        yield audio


def _rounded(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)


def _floats(frame: av.AudioFrame) -> NDArray[np.float32]:
    """A frame as float32 [C, T] of full scale 1, exact for up to 24 bits."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    name = frame.format.name.removesuffix("p")
    if name in _SCALES:
        middle, scale = _SCALES[name]
        return np.ascontiguousarray((values.astype(np.float32) - np.float32(middle)) * np.float32(scale))
    if name not in ("flt", "dbl"):
        raise unreadable(f"its samples are {name}, which is not read")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, np.float32)
