"""Where an MP4 file's packets lie: the sample tables of its track, or the fragments (ISO/IEC 14496-12, 8.6 to 8.8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.media_boxes import Box
from pipeline.media_track import Codec, truncated, unreadable

_DURATION, _SIZE, _FLAGS, _COMPOSITION = 0x100, 0x200, 0x400, 0x800
_BASE, _DESCRIPTION, _DEFAULT_DURATION, _DEFAULT_SIZE, _BASE_IS_MOOF = 0x1, 0x2, 0x8, 0x10, 0x20000
_DATA_OFFSET, _FIRST_FLAGS = 0x1, 0x4


@dataclass(frozen=True, slots=True)
class Packets:
    """The packets, int64 [P] each, not compared with the file yet; `num_ticks` is how long they say to be together."""

    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    num_ticks: int


def table_packets(stbl: Box, codec: Codec) -> Packets:
    """The packets of a track's own tables; those of PCM are its chunks."""
    times = stbl.need(b"stts")
    counts, deltas = times.table(">u4,>u4", times.unpack("4xI")[0], 8).astype("i8,i8").view("i8").reshape(-1, 2).T
    chunk_offsets = _chunk_offsets(stbl)
    chunk_samples = _chunk_samples(stbl.need(b"stsc"), len(chunk_offsets))
    fixed_size, num_samples = _sample_sizes(stbl)
    if not num_samples == chunk_samples.sum() == counts.sum():
        raise unreadable("its tables of sizes, chunks and times are of different numbers of samples")
    if num_samples > len(stbl.audio):
        raise truncated(f"its tables say {num_samples} samples, more than the file has bytes")
    num_ticks = int(np.dot(counts, deltas))
    if codec.frame_bytes:
        if isinstance(fixed_size, int) and fixed_size not in (1, codec.frame_bytes):
            raise unreadable(f"its PCM samples are {fixed_size} bytes each, where {codec.frame_bytes} are due")
        return Packets(chunk_offsets, chunk_samples * codec.frame_bytes, num_ticks)
    if isinstance(fixed_size, int):
        if fixed_size * num_samples > len(stbl.audio):
            raise truncated(f"its table says {num_samples} packets of {fixed_size} bytes, more than the file has")
        sizes = np.full(num_samples, fixed_size, np.int64)
    else:
        sizes = fixed_size
    behind = np.cumsum(sizes) - sizes
    first_of_chunk = np.cumsum(chunk_samples) - chunk_samples
    filled = chunk_samples > 0
    starts = np.zeros(len(chunk_samples), np.int64)
    starts[filled] = behind[first_of_chunk[filled]]
    offsets = np.repeat(chunk_offsets - starts, chunk_samples) + behind
    return Packets(offsets, sizes, num_ticks)


def _chunk_offsets(stbl: Box) -> NDArray[np.int64]:
    if (short := stbl.find(b"stco")) is not None:
        return short.table(">u4", short.unpack("4xI")[0], 8).astype(np.int64)
    long = stbl.need(b"co64")
    # What is above is far behind any file's end, and would be negative.
    offsets: NDArray[np.int64] = np.minimum(long.table(">u8", long.unpack("4xI")[0], 8), 1 << 62).astype(np.int64)
    return offsets


def _chunk_samples(stsc: Box, num_chunks: int) -> NDArray[np.int64]:
    """How many samples each chunk has."""
    runs = stsc.table(">u4,>u4,>u4", stsc.unpack("4xI")[0], 8).astype("i8,i8,i8").view("i8").reshape(-1, 3)
    bounds = np.append(runs[:, 0], num_chunks + 1)
    lengths = np.diff(bounds)
    if num_chunks and (not len(runs) or runs[0, 0] != 1 or lengths.min() < 0):
        raise unreadable("its table of chunks is not in order")
    if len(runs) and runs[:, 2].max() != 1:
        raise unreadable("its table of chunks names a sample description that is not there")
    return np.repeat(runs[:, 1], lengths) if num_chunks else np.zeros(0, np.int64)


def _sample_sizes(stbl: Box) -> tuple[int | NDArray[np.int64], int]:
    """The one size of all samples, or the size of each; and how many there are."""
    stsz = stbl.find(b"stsz")
    if stsz is None:
        raise unreadable("its sizes stand in no stsz box, as they must to be read")
    size, num_samples = stsz.unpack("4xII")
    return size or stsz.table(">u4", num_samples, 12).astype(np.int64), num_samples


class Fragments:
    """Gathers the packets of one track from the `moof` boxes of a file, in order."""

    def __init__(self, track_id: int, trex: Box) -> None:
        self._track_id = track_id
        self._default_duration, self._default_size = trex.unpack("12xII")
        self._offsets: list[NDArray[np.int64]] = []
        self._sizes: list[NDArray[np.int64]] = []
        self._num_ticks = 0
        self._first_time: int | None = None

    def add(self, moof: Box) -> None:
        """Take the next fragment; raises `AudioRejectedError` where the time it says leaves a gap."""
        for index, traf in enumerate(box for box in moof.children() if box.kind == b"traf"):
            head = traf.need(b"tfhd")
            flags, track_id = head.unpack("II")
            if track_id == self._track_id:
                if not flags & (_BASE | _BASE_IS_MOOF) and index:
                    raise unreadable("the place of a fragment's data hangs on another track's")
                self._add_traf(traf, head, flags & 0xFFFFFF, moof.begin)

    def packets(self) -> Packets:
        """All that were found."""
        nothing = np.zeros(0, np.int64)
        return Packets(
            np.concatenate([nothing, *self._offsets]), np.concatenate([nothing, *self._sizes]), self._num_ticks
        )

    def _add_traf(self, traf: Box, head: Box, flags: int, base: int) -> None:
        at, duration, size = 8, self._default_duration, self._default_size
        if flags & _BASE:
            (base,) = head.unpack("Q", at)
        at += 8 * bool(flags & _BASE) + 4 * bool(flags & _DESCRIPTION)
        if flags & _DEFAULT_DURATION:
            (duration,) = head.unpack("I", at)
            at += 4
        if flags & _DEFAULT_SIZE:
            (size,) = head.unpack("I", at)
        self._check_time(traf.find(b"tfdt"))
        position = base
        for run in traf.children():
            if run.kind == b"trun":
                position = self._add_run(run, base, position, duration, size)

    def _check_time(self, tfdt: Box | None) -> None:
        if tfdt is None:
            return
        (time,) = tfdt.unpack("4xQ") if tfdt.unpack("B")[0] else tfdt.unpack("4xI")
        self._first_time = time - self._num_ticks if self._first_time is None else self._first_time
        if time - self._first_time != self._num_ticks:
            detail = (
                f"a fragment begins {time - self._first_time} ticks after the first, behind {self._num_ticks} ticks"
            )
            raise truncated(detail)

    def _add_run(self, run: Box, base: int, position: int, duration: int, size: int) -> int:
        """Take a `trun`; where the next one begins when it does not say so."""
        flags, num_samples = run.unpack("II")
        at = 8
        if flags & _DATA_OFFSET:
            position, at = base + run.unpack("i", at)[0], at + 4
        at += 4 * bool(flags & _FIRST_FLAGS)
        fields = [bit for bit in (_DURATION, _SIZE, _FLAGS, _COMPOSITION) if flags & bit]
        if not flags & _SIZE and max(size, 1) * num_samples > len(run.audio):
            raise truncated(f"a fragment says {num_samples} packets of {size} bytes, more than the file has")
        rows = run.table(">u4", num_samples * len(fields), at).reshape(num_samples, len(fields)).astype(np.int64)
        sizes: NDArray[Any] = rows[:, fields.index(_SIZE)] if flags & _SIZE else np.full(num_samples, size, np.int64)
        durations = rows[:, fields.index(_DURATION)].sum() if flags & _DURATION else duration * num_samples
        self._num_ticks += int(durations)
        self._offsets.append(position + np.cumsum(sizes) - sizes)
        self._sizes.append(sizes)
        return position + int(sizes.sum())
