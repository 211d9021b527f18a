"""`voxmill plan`: what a run would do, from a listing and a few ranged reads; writes nothing, fetches no weights."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import soundfile

from codec.longcat.config import PUBLISHED
from jobs.streams import check_streams
from jobs.terminal import hours
from pipeline.clip_limits import AudioRejectedError
from pipeline.commit import list_commits
from pipeline.config import JobConfig
from pipeline.errors import ConfigError, DataError
from pipeline.layout import output_place
from pipeline.media_track import media_container
from pipeline.media_walk import walk
from pipeline.reader import read_samples
from pipeline.settings import ReadingConfig
from pipeline.shards import list_shards
from pipeline.storage import Stores
from pipeline.types import Content, Sample, Shard

SHARDS_SAMPLED = 4
SAMPLED_BYTES = 4 << 20
"""Of each sampled shard: its first members tell how many seconds a byte holds."""

TOKEN_BYTES = 1.7
"""Of one stored token: about 13 bits, measured on token shards of random weights, which compress the least."""


@dataclass(frozen=True)
class PlanReport:
    """Estimates have `estimated` in their names; None where no sampled clip could be read."""

    output: str
    num_shards: int
    num_missing: int
    num_committed: int
    num_bytes: int
    num_bytes_todo: int
    num_sampled_clips: int
    estimated_audio_s: float | None
    estimated_num_frames: int | None
    estimated_num_tokens: int | None
    estimated_output_bytes: int | None
    frame_rate_hz: float
    num_codebooks: int
    chooses_codebooks: bool
    assumes_published_sizes: bool

    def lines(self) -> list[str]:
        """For people."""
        lines = [
            f"shards     {self.num_shards} ({self.num_missing} named ones are missing), {self.num_bytes / 1e9:.3f} GB",
            f"to do      {self.num_shards - self.num_committed} ({self.num_committed} committed in {self.output})",
        ]
        if self.assumes_published_sizes:
            lines.append("codec      not fetched for a plan; LongCat's published sizes are assumed")
        at_most = " at most, by clip," if self.chooses_codebooks else ""
        lines.append(f"tokens     {self.num_codebooks} a frame{at_most} at {self.frame_rate_hz:.2f} frames/s")
        if self.estimated_audio_s is None:
            return [*lines, "audio      not estimated: no clip could be read in the sampled shards"]
        return [
            *lines,
            f"audio      about {hours(self.estimated_audio_s)} to do (from {self.num_sampled_clips} clips)",
            f"output     {'at most' if self.chooses_codebooks else 'about'} {self.estimated_num_tokens} tokens, "
            f"{(self.estimated_output_bytes or 0) / 1e9:.3f} GB",
        ]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def plan(config: JobConfig) -> PlanReport:
    """List, sample, estimate. Raises as listing does."""
    stores = Stores(config.storage, config.retry)
    listing = list_shards(config.input, stores)
    if not listing.shards:
        raise ConfigError(f"no input shard is there; asked for: {', '.join(config.input)}")
    place = output_place(config.output)
    committed = {entry.shard_id for entry in list_commits(stores(place.base), place)}
    todo = [shard for shard in listing.shards if shard.shard_id not in committed]
    frame_rate_hz, num_acoustic, assumed = _sizes(config)
    num_codebooks = ("semantic" in config.streams) + num_acoustic
    num_clips, seconds_per_byte = _sample(stores, listing.shards, config)
    num_bytes_todo = sum(shard.size_bytes for shard in todo)
    audio_s = None if seconds_per_byte is None else num_bytes_todo * seconds_per_byte
    num_frames = None if audio_s is None else round(audio_s * frame_rate_hz)
    num_tokens = None if num_frames is None else num_frames * num_codebooks
    return PlanReport(
        output=place.base,
        num_shards=len(listing.shards) + len(listing.missing),
        num_missing=len(listing.missing),
        num_committed=len(listing.shards) - len(todo),
        num_bytes=sum(shard.size_bytes for shard in listing.shards),
        num_bytes_todo=num_bytes_todo,
        num_sampled_clips=num_clips,
        estimated_audio_s=audio_s,
        estimated_num_frames=num_frames,
        estimated_num_tokens=num_tokens,
        estimated_output_bytes=None if num_tokens is None else round(num_tokens * TOKEN_BYTES),
        frame_rate_hz=frame_rate_hz,
        num_codebooks=num_codebooks,
        chooses_codebooks=config.auto_codebooks is not None,
        assumes_published_sizes=assumed,
    )


def _sizes(config: JobConfig) -> tuple[float, int, bool]:
    """(frames a second, acoustic codebooks at most, whether assumed): a remote codec is not fetched."""
    remote = config.codec == "longcat" or config.codec.startswith(("hf://", "s3://"))
    tells_residuals = True
    if remote:
        frame_rate_hz = PUBLISHED.sample_rate_hz / PUBLISHED.frame_size
        num_acoustic, has_semantic = PUBLISHED.acoustic.num_codebooks, True
    else:
        from codec.registry import codec_info  # imports torch

        info = codec_info(config.codec)
        frame_rate_hz, num_acoustic = info.frame_rate_hz, len(info.acoustic_cardinalities)
        has_semantic = info.semantic_cardinality > 0
        tells_residuals = info.tells_residuals
    check_streams(config, codec=config.codec, has_semantic=has_semantic, num_acoustic=num_acoustic)
    config.check_codebooks(config.codec, num_acoustic, tells_residuals=tells_residuals)
    return frame_rate_hz, config.num_codebooks_max(num_acoustic), remote


def _sample(stores: Stores, shards: Sequence[Shard], config: JobConfig) -> tuple[int, float | None]:
    """(clips read, audio seconds a shard byte) over the first members of a few shards of all sizes."""
    by_size = sorted((shard for shard in shards if shard.size_bytes), key=lambda shard: shard.size_bytes)
    count = min(SHARDS_SAMPLED, len(by_size))
    picked = [by_size[(2 * index + 1) * len(by_size) // (2 * count)] for index in range(count)]
    num_clips, audio_s, num_bytes = 0, 0.0, 0
    for shard in picked:
        clips, seconds, used = _sample_shard(stores, shard, config.reading)
        num_clips, audio_s, num_bytes = num_clips + clips, audio_s + seconds, num_bytes + used
    return num_clips, audio_s / num_bytes if audio_s else None


class _Head:
    """The first bytes of a shard as a stream; ends where they end."""

    def __init__(self, content: Content) -> None:
        self._file = io.BytesIO(content)

    def read_exact(self, num_bytes: int) -> bytes:
        content = self._file.read(num_bytes)
        if len(content) < num_bytes:
            raise EOFError
        return content

    def read_payload(self, num_bytes: int) -> bytes:
        return self.read_exact(num_bytes)

    def skip(self, num_bytes: int) -> None:
        self.read_exact(num_bytes)


def _length_s(audio: bytes) -> float:
    container = media_container(audio)
    if container is not None:
        return walk(audio, container).length_s
    length_s: float = soundfile.info(io.BytesIO(audio)).duration
    return length_s


def _sample_shard(stores: Stores, shard: Shard, config: ReadingConfig) -> tuple[int, float, int]:
    """(clips, audio seconds, bytes) of the whole samples in the shard's first bytes."""
    num_bytes = min(SAMPLED_BYTES, shard.size_bytes)
    num_clips, audio_s, used = 0, 0.0, 0
    try:
        head = stores(shard.uri).read_range(shard.uri, 0, num_bytes, etag=shard.etag)
        for sample in read_samples(_Head(head), shard.size_bytes, config, ()):
            if isinstance(sample, Sample):
                try:
                    audio_s += _length_s(bytes(sample.audio))
                except (soundfile.LibsndfileError, AudioRejectedError):
                    continue  # the run will reject it with its reason
                num_clips += 1
                used += len(sample.audio) + 1024  # its header and padding
    except (DataError, EOFError):
        pass  # the head ends within a member, or the shard is damaged: what was read before counts
    return num_clips, audio_s, max(used, 1)
