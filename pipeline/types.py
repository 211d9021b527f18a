"""The values that flow between the stages; frozen, and without behaviour that touches the outside."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Final

import numpy as np
from numpy.typing import NDArray

Content = bytes | memoryview
"""Bytes that do not change; large ones are views of `pipeline.pages`."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object of a store. `etag` is the store's own for S3, `<mtime ns>-<size>` (hex) for local files.

    `modified_unix_s` is the store's time of the last write; None where its answer did not say.
    """

    uri: str
    size_bytes: int
    etag: str
    modified_unix_s: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class PartialObject:
    """A write that has not ended: a hidden file of a local store, a multipart upload of S3 (`upload_id`)."""

    uri: str
    started_unix_s: float
    upload_id: str = ""


@dataclass(frozen=True, slots=True)
class Shard:
    """One input shard as it was listed."""

    uri: str
    size_bytes: int
    etag: str

    @property
    def shard_id(self) -> str:
        """File stem + `-` + 8 hex of the SHA-256 of the URI: stable when the listing grows."""
        name = self.uri.rpartition("/")[2]
        if name in ("", "."):  # which a path does not count as names; a path object for each of a million is too slow
            name = PurePosixPath(self.uri).name
        return f"{name.removesuffix('.tar')}-{hashlib.sha256(self.uri.encode()).hexdigest()[:8]}"


class RejectReason(StrEnum):
    """Why a sample (or a stray member) was put aside."""

    NO_AUDIO = "no_audio"
    AMBIGUOUS_AUDIO = "ambiguous_audio"
    DUPLICATE_KEY = "duplicate_key"
    BAD_NAME = "bad_name"
    NOT_A_FILE = "not_a_file"
    TOO_LARGE = "too_large"
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    EMPTY = "empty"
    NOT_FINITE = "not_finite"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    ABSURD_HEADER = "absurd_header"
    BAD_SIDECAR = "bad_sidecar"
    DECODER_CRASHED = "decoder_crashed"
    DECODER_TIMEOUT = "decoder_timeout"
    DECODER_OUT_OF_MEMORY = "decoder_out_of_memory"


@dataclass(frozen=True, slots=True)
class Reject:
    """A sample put aside. `member` is the tar member at fault (or the audio), `num_bytes` its size."""

    key: str
    member: str
    reason: RejectReason
    detail: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One keyed group of tar members with exactly one audio member.

    `key` is WebDataset's `__key__`; `audio_suffix` the lower-cased suffix of the audio member (`flac`,
    `v1.wav`); `sidecars` maps the carried suffixes to their bytes.
    """

    key: str
    audio_member: str
    audio_suffix: str
    audio: Content
    sidecars: Mapping[str, bytes] = field(default_factory=dict)


Pcm = NDArray[np.float32] | NDArray[np.int16]


def scale_into(pcm: Pcm, waveform: NDArray[np.float32]) -> None:
    """Write audio samples as float32 of full scale 1; exact, since the scale of int16 is a power of two."""
    if pcm.dtype == np.float32:
        waveform[:] = pcm
    else:
        np.multiply(pcm, _INT16_STEP, out=waveform)


_INT16_STEP: Final = np.float32(1 / 32768)


@dataclass(frozen=True, slots=True)
class Clip:
    """A decoded sample: mono `pcm` [num_audio_samples] at the codec's rate.

    It is float32 of full scale 1, or int16 of full scale 32768 as it stood in the file: the same values, in half the
    memory, until they are scaled straight into a batch.
    """

    key: str
    pcm: Pcm
    source_sample_rate_hz: int
    source_num_channels: int
    sidecars: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def num_audio_samples(self) -> int:
        """Its length."""
        return len(self.pcm)

    @property
    def waveform(self) -> NDArray[np.float32]:
        """The waveform in float32 [num_audio_samples]."""
        waveform = np.empty(len(self.pcm), np.float32)
        scale_into(self.pcm, waveform)
        return waveform


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a clip, in audio samples at the codec's rate; `num_frames = ceil(length / frame size)`."""

    start: int
    length: int
    num_frames: int


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One sample's tokens: `semantic` uint16 [F] or None, `acoustic` uint16 [K, F] or None.

    K may be another in each row, where the job leaves the number of acoustic codebooks to the clip.
    """

    key: str
    num_frames: int
    num_audio_samples: int
    source_sample_rate_hz: int
    source_num_channels: int
    segments: tuple[Segment, ...]
    semantic: NDArray[np.uint16] | None
    acoustic: NDArray[np.uint16] | None
    sidecars: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AudioRow:
    """One sample's audio made of its tokens: mono `pcm` int16 [num_samples] of full scale 32768.

    `num_frames`, the source's numbers and the sidecars are the token row's; `num_acoustic_codebooks` are those decoded.
    """

    key: str
    pcm: NDArray[np.int16]
    sample_rate_hz: int
    num_frames: int
    source_sample_rate_hz: int
    source_num_channels: int
    num_acoustic_codebooks: int
    sidecars: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Task:
    """One shard to do, as one attempt (a UUID in hex) at it."""

    shard: Shard
    attempt: str
