"""What a container of the `[media]` extra says of its one audio track, and by which bytes such a file is known.

The containers are walked here and in `media_*.py`, not by FFmpeg: its demuxers pass over what is cut or missing, round
lengths to milliseconds, and open other files where a container names them. FFmpeg decodes packets, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.clip_limits import AudioRejectedError
from pipeline.containers_mp3 import after_id3
from pipeline.types import RejectReason

Container = Literal["MP4", "Matroska", "ADTS"]

ADTS_HEADER_BYTES: Final = 7
_EBML: Final = b"\x1a\x45\xdf\xa3"
_FIRST_BOXES: Final = frozenset({b"ftyp", b"moov", b"wide"})
"""`ftyp` of ISO/IEC 14496-12; older QuickTime files begin with one of the others."""


@dataclass(frozen=True, slots=True)
class Codec:
    """How FFmpeg calls the decoder, and what it has to be told before the first packet.

    PCM is in packets of any whole number of `frame_bytes` (a sample of all channels), 0 for other codecs.
    """

    decoder: str
    extradata: bytes = b""
    frame_bytes: int = 0
    sample_rate_hz: int = 0
    num_channels: int = 0


@dataclass(frozen=True, slots=True)
class Track:
    """One audio track: where its packets lie in the file, and which of the decoded samples are the audio.

    `offsets` and `sizes`, int64 [P], are inside the file. Of what is decoded, the audio begins at `start` and ends at
    `end` (None: where it ends), less `discard` at the end; `declared` is how long what is decoded must be (None: open),
    to the sample where `is_exact`, else to a packet. All are in ticks of `ticks_hz`. `starts_s`, float64 [P], are the
    packets' times, NaN where none stands; None where the durations of all packets are in `declared`.
    """

    codec: Codec
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    ticks_hz: int
    start: int = 0
    end: int | None = None
    discard: int = 0
    declared: int | None = None
    is_exact: bool = True
    starts_s: NDArray[np.float64] | None = None
    time_step_s: float = 0.0

    @property
    def length_s(self) -> float:
        """How long the audio is by what the container says: to a packet or so; 0 where it says nothing."""
        end = self.declared if self.end is None else self.end
        if end is None:
            return float(np.nanmax(self.starts_s)) if self.starts_s is not None and len(self.starts_s) else 0.0
        return max(end - self.start - self.discard, 0) / self.ticks_hz


def media_container(audio: bytes) -> Container | None:
    """The container of a file that soundfile does not read and PyAV does, by its bytes alone; None for all others."""
    if audio[4:8] in _FIRST_BOXES:
        return "MP4"
    if audio[:4] == _EBML:
        return "Matroska"
    return "ADTS" if _is_adts(audio) else None


def _is_adts(audio: bytes) -> bool:
    """Two ADTS frames in a row, or one that ends the file, at its start or behind ID3 tags."""
    start = after_id3(audio, 0)
    size = adts_frame_bytes(audio, start)
    if size is None:
        return False
    return start + size >= len(audio) or adts_frame_bytes(audio, start + size) is not None


def adts_frame_bytes(audio: bytes, position: int) -> int | None:
    """The length of the ADTS frame with a header at `position` (ISO/IEC 13818-7, 6.2); None where there is none.

    The layer of MPEG audio, never 0 there, tells it from an MP3 frame.
    """
    head = audio[position : position + ADTS_HEADER_BYTES]
    if len(head) < ADTS_HEADER_BYTES or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or head[2] >> 2 & 15 > 12:
        return None
    size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return size if size > ADTS_HEADER_BYTES else None


def truncated(detail: str) -> AudioRejectedError:
    """Something declared is not there."""
    return AudioRejectedError(RejectReason.TRUNCATED, detail)


def unreadable(detail: str) -> AudioRejectedError:
    """It is whole, as far as one can tell, and not read."""
    return AudioRejectedError(RejectReason.UNREADABLE, detail)
