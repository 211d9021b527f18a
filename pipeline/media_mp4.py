"""MP4, M4A and QuickTime files (ISO/IEC 14496-12): their one audio track, and what says that none of it is missing.

Every packet that the tables name must lie in the file, and what is decoded must be as long as the tables say. Which of
it is the audio, an edit list says, or `iTunSMPB` in files of iTunes that have none: encoders put silence in front.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import numpy as np

from pipeline import media_codecs
from pipeline.clip_limits import AudioRejectedError
from pipeline.media_boxes import Box, boxes
from pipeline.media_mp4_codecs import codec_of, opus_pre_skip_of
from pipeline.media_mp4_tables import Fragments, Packets, table_packets
from pipeline.media_track import Codec, Track, truncated, unreadable
from pipeline.types import RejectReason

_ITUNES_LENGTHS: Final = re.compile(rb" 0{8} ([0-9A-F]{8}) ([0-9A-F]{8}) ([0-9A-F]{16})")
_SELF_CONTAINED: Final = 1
_NORMAL_RATE: Final = 0x10000


def mp4_track(audio: bytes) -> Track:
    """The one audio track; raises `AudioRejectedError` where something is cut, missing or not read."""
    top = list(boxes(audio, 0, len(audio)))
    found = [box for box in top if box.kind == b"moov"]
    if not found:
        raise truncated("it has no moov box, so it is cut or was never completed")
    if len(found) > 1:
        raise unreadable(f"it has {len(found)} moov boxes; exactly one is read")
    moov = found[0]
    trak = _audio_trak(moov)
    stbl = trak.need(b"mdia", b"minf", b"stbl")
    codec = codec_of(stbl.need(b"stsd"))
    _check_self_contained(trak)
    times = _Times(moov, trak)
    packets = table_packets(stbl, codec)
    if (mvex := moov.find(b"mvex")) is not None:
        packets = _fragmented(top, trak, mvex, packets, times)
    _check_there(packets, len(audio))
    if (num_flac := _flac_ticks(codec, times)) is not None and num_flac != packets.num_ticks:
        raise truncated(f"its FLAC header says {num_flac} samples, its tables {packets.num_ticks}")
    start, end = _edit(moov, trak, codec, times, packets.num_ticks)
    return Track(
        codec=codec,
        offsets=packets.offsets,
        sizes=packets.sizes,
        ticks_hz=times.media_hz,
        start=start,
        end=end,
        declared=packets.num_ticks,
    )


class _Times:
    """The clocks of the whole and of the track, in Hz."""

    def __init__(self, moov: Box, trak: Box) -> None:
        self.movie_hz = _after_dates(moov.need(b"mvhd"))
        self.media_hz = _after_dates(trak.need(b"mdia", b"mdhd"))
        if not self.movie_hz or not self.media_hz:
            raise unreadable("a clock of it has no ticks")


def _after_dates(box: Box) -> int:
    """The field behind the two dates, which are of 64 bits in version 1."""
    value: int = box.unpack("I", skip=20 if box.unpack("B")[0] else 12)[0]
    return value


def _audio_trak(moov: Box) -> Box:
    traks = [box for box in moov.children() if box.kind == b"trak"]
    sound = [trak for trak in traks if trak.need(b"mdia", b"hdlr").unpack("8x4s")[0] == b"soun"]
    if len(sound) != 1:
        detail = f"it has {len(sound)} audio tracks; exactly one is read: take out the one that is meant"
        raise AudioRejectedError(RejectReason.AMBIGUOUS_AUDIO if sound else RejectReason.NO_AUDIO, detail)
    return sound[0]


def _check_self_contained(trak: Box) -> None:
    """Its data must be in this file; another one is never opened."""
    dref = trak.find(b"mdia", b"minf", b"dinf", b"dref")
    for entry in dref.children(skip=8) if dref else []:
        if not entry.unpack("I")[0] & _SELF_CONTAINED:
            raise unreadable("its data are in another file, which is not read")


def _fragmented(top: list[Box], trak: Box, mvex: Box, packets: Packets, times: _Times) -> Packets:
    """The packets in the fragments; as many as the file says there are, where it does."""
    if len(packets.sizes):
        raise unreadable("it has packets both in its tables and in fragments")
    (track_id,) = trak.need(b"tkhd").unpack("I", skip=20 if trak.need(b"tkhd").unpack("B")[0] else 12)
    trex = [box for box in mvex.children() if box.kind == b"trex" and box.unpack("4xI")[0] == track_id]
    if len(trex) != 1:
        raise unreadable("its fragments have no defaults (trex) for the audio track")
    fragments = Fragments(track_id, trex[0])
    for box in top:
        if box.kind == b"moof":
            fragments.add(box)
        elif box.kind == b"sidx":
            _check_index(box)
    found = fragments.packets()
    if (mehd := mvex.find(b"mehd")) is not None:
        (declared,) = mehd.unpack("4xQ") if mehd.unpack("B")[0] else mehd.unpack("4xI")
        # Of whichever track is longest, to a tick of the whole's clock.
        num_traks = len([box for box in mvex.children() if box.kind == b"trex"])
        if num_traks == 1 and (declared - 1) * times.media_hz > found.num_ticks * times.movie_hz:
            raise truncated(
                f"it says {declared / times.movie_hz:.3f} s, {found.num_ticks / times.media_hz:.3f} are there"
            )
    return found


def _check_index(sidx: Box) -> None:
    """A segment index says how many bytes of fragments come behind it (ISO/IEC 14496-12, 8.16.3)."""
    is_long = sidx.unpack("B")[0]
    (first,) = sidx.unpack("Q", 20) if is_long else sidx.unpack("I", 16)
    at = 28 if is_long else 20
    (num_entries,) = sidx.unpack("2xH", at)
    sizes = sidx.table(">u4,>u4,>u4", num_entries, at + 4)["f0"].astype(np.int64) & 0x7FFFFFFF
    end = sidx.end + first + int(sizes.sum())
    if end > len(sidx.audio):
        raise truncated(f"its index says that it goes on to byte {end}, {len(sidx.audio)} bytes are there")


def _check_there(packets: Packets, num_bytes: int) -> None:
    ends = packets.offsets + packets.sizes
    if len(ends) and (packets.offsets.min() < 0 or ends.max() > num_bytes):
        raise truncated(f"its tables say that it goes on to byte {ends.max()}, {num_bytes} bytes are there")


def _flac_ticks(codec: Codec, times: _Times) -> int | None:
    if codec.decoder != "flac" or int.from_bytes(codec.extradata[10:13], "big") >> 4 != times.media_hz:
        return None
    return media_codecs.flac_num_samples(codec)


class _Edit(NamedTuple):
    """The audio, from `start` to `end`, in ticks of the track's clock."""

    start: int
    end: int


def _edit(moov: Box, trak: Box, codec: Codec, times: _Times, num_ticks: int) -> _Edit:
    """Which part is the audio. Of an edit list, the one part that it plays; silence in front of it is not audio."""
    elst = trak.find(b"edts", b"elst")
    parts = _parts(elst) if elst else []
    if len(parts) > 1:
        raise unreadable(f"its edit list has {len(parts)} parts; one is read")
    if parts:
        duration, start = parts[0]
        # The whole's clock is coarser as a rule, so an end less than a tick of it away is the end.
        if duration:
            ticks_apart = start * times.movie_hz + duration * times.media_hz - num_ticks * times.movie_hz
            if ticks_apart > times.media_hz + times.movie_hz:
                raise truncated(f"its edit list says {duration / times.movie_hz:.3f} s, more than its tables have")
            if ticks_apart <= -times.media_hz:
                return _Edit(start, start + duration * times.media_hz // times.movie_hz)
        if start or duration:
            found = _itunes(moov, num_ticks) if not start else None
            return found or _Edit(start, num_ticks)
    found = _itunes(moov, num_ticks)
    return found or _Edit(opus_pre_skip_of(codec) * times.media_hz // media_codecs.OPUS_RATE_HZ, num_ticks)


def _parts(elst: Box) -> list[tuple[int, int]]:
    """(duration in the whole's ticks, start in the track's ticks) of the parts that play something."""
    is_long, num_parts = elst.unpack("B3xI")
    dtype = ">u8,>i8,>i4" if is_long else ">u4,>i4,>i4"
    parts = [tuple(map(int, row)) for row in elst.table(dtype, num_parts, 8).tolist()]
    played = [(duration, start) for duration, start, _ in parts if start >= 0]
    if any(rate != _NORMAL_RATE for _, start, rate in parts if start >= 0):
        raise unreadable("its edit list plays it faster or slower")
    return played


def _itunes(moov: Box, num_ticks: int) -> _Edit | None:
    """What iTunes says of the encoder's delay and the length, in samples of the track's clock."""
    at = moov.audio.find(b"iTunSMPB", moov.start, moov.end)
    found = _ITUNES_LENGTHS.search(moov.audio, at, min(at + 200, moov.end)) if at >= 0 else None
    if found is None:
        return None
    start, padding, length = (int(field, 16) for field in found.groups())
    if start + length > num_ticks:
        raise truncated(f"iTunSMPB says {start + length} samples, its tables {num_ticks}")
    return _Edit(start, start + length) if length and start + length + padding <= num_ticks else None
