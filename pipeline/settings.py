"""The groups of settings: every bound has a name, a default and a range here, and nowhere else.

Fields marked `TOKENS` decide the tokens (or which samples are rejected) and so enter the fingerprint;
all others may change between the runs of one job.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

TOKENS: dict[str, Any] = {"decides_tokens": True}


class Group(BaseModel):
    """Settings that belong together: an unknown one is a fault, none changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StorageConfig(Group):
    """How stores are spoken to. Secrets never stand here: they come from the environment or the profile."""

    endpoint_url: str | None = Field(None, description="S3 endpoint; default: AWS_ENDPOINT_URL, then AWS's own")
    profile: str | None = Field(None, description="profile of ~/.aws; default: AWS_PROFILE")
    anonymous: bool = Field(False, description="sign no request: for public buckets")
    connect_timeout_s: float = Field(10.0, gt=0, le=600)
    read_timeout_s: float = Field(60.0, gt=0, le=3600, description="between two bytes of an answer")
    request_s_max: float = Field(300.0, gt=0, le=3600, description="for one request as a whole")
    connections_max: int = Field(32, ge=1, le=1024)
    part_bytes: int = Field(16 << 20, ge=5 << 20, le=1 << 30, description="part size of a multipart upload")


class RetryConfig(Group):
    """The one policy for a call to a store: full jitter between zero and an exponential bound."""

    attempts_max: int = Field(8, ge=1, le=100)
    backoff_s: float = Field(0.2, gt=0, le=60)
    backoff_s_max: float = Field(20.0, gt=0, le=600)
    total_s_max: float = Field(300.0, gt=0, le=86400)


class ReadingConfig(Group):
    """Reading of shards."""

    range_bytes: int = Field(8 << 20, ge=1 << 16, le=1 << 30, description="size of one ranged read")
    ranges_in_flight: int = Field(4, ge=1, le=64, description="ranged reads under way at once, a shard")
    check_md5: bool = Field(True, description="compare a shard's bytes with its ETag where that is an MD5")
    sample_bytes_max: int = Field(1 << 30, ge=1 << 10, json_schema_extra=TOKENS)
    samples_max: int = Field(1_000_000, ge=1, json_schema_extra=TOKENS)
    duplicate_keys: Literal["reject", "fail"] = Field("reject", json_schema_extra=TOKENS)
    audio_suffix: str | None = Field(
        None, description="the audio member where a sample has several", json_schema_extra=TOKENS
    )
    rejects_max_share: float = Field(
        1.0,
        ge=0,
        le=1,
        description="a shard with a larger share of rejected samples fails",
        json_schema_extra=TOKENS,
    )


class DecodingConfig(Group):
    """Decoding of audio in worker processes, and which clips are let in."""

    workers: int = Field(2, ge=1, le=256, description="decoding processes of one replica")
    chunk_bytes: int = Field(1 << 20, ge=1, le=1 << 28, description="audio handed to a worker at once")
    clips_in_flight_max: int = Field(64, ge=1, le=65536)
    timeout_s: float = Field(120.0, gt=0, le=3600, description="for one clip", json_schema_extra=TOKENS)
    memory_bytes_max: int = Field(
        2 << 30, ge=1 << 26, description="of one worker above its size at start", json_schema_extra=TOKENS
    )
    clip_ms_min: float = Field(10.0, ge=0, le=3_600_000, json_schema_extra=TOKENS)
    clip_s_max: float = Field(4 * 3600.0, gt=0, le=86400, json_schema_extra=TOKENS)


class BatchPlanConfig(Group):
    """How pieces of like lengths become batches; decides padded shapes, so it is part of the fingerprint."""

    batch_s: float = Field(60.0, gt=0, le=86400, description="padded seconds of one batch", json_schema_extra=TOKENS)
    batch_size_max: int = Field(64, ge=1, le=65536, json_schema_extra=TOKENS)
    window_s: float = Field(
        1200.0, gt=0, le=86400, description="seconds of clips sorted by length at once", json_schema_extra=TOKENS
    )


class BatchingConfig(BatchPlanConfig):
    """How clips become batches."""

    batch_cost_s: float | None = Field(
        None,
        ge=0,
        le=86400,
        description="padding that a batch fewer is worth, in seconds; default: 0.5, where padding costs nothing 8",
        json_schema_extra=TOKENS,
    )
    segment_s: float = Field(
        30.0, gt=0, le=3600, description="longest segment of a long clip", json_schema_extra=TOKENS
    )
    segment_search_s: float = Field(
        5.0, ge=0, le=3600, description="a cut is sought this far before the segment's end", json_schema_extra=TOKENS
    )
    windows_in_flight: int = Field(1, ge=1, le=16, description="windows read ahead of the codec, a shard")


class WritingConfig(Group):
    """Token shards."""

    row_group_rows: int = Field(1024, ge=1, json_schema_extra=TOKENS)
    compression: Literal["zstd", "none"] = Field("zstd", json_schema_extra=TOKENS)


class RunningConfig(Group):
    """How a run goes about its shards: patience, leases, tries."""

    shards_in_flight: int = Field(2, ge=1, le=8, description="shards a replica holds: one encoding, others near it")
    heartbeat_s: float = Field(5.0, gt=0, le=3600, description="between two askings of a replica for a sign of life")
    lease_s: float = Field(120.0, gt=0, le=86400, description="without a sign of life a lease ends")
    stall_s: float = Field(900.0, gt=0, le=86400, description="a shard without progress: its replica is replaced")
    data_attempts_max: int = Field(2, ge=1, le=100)
    unknown_attempts_max: int = Field(3, ge=1, le=100)
    infra_attempts_max: int = Field(20, ge=1, le=10000)
    denied_s_max: float = Field(300.0, gt=0, le=86400, description="store denies every attempt so long: run stops")
    replica_deaths_max: int = Field(3, ge=1, le=100, description="a shard that killed so many replicas is failed")
    retry_backoff_s: float = Field(1.0, gt=0, le=600)
    retry_backoff_s_max: float = Field(60.0, gt=0, le=3600)
    drain_s: float = Field(
        20.0, ge=0, le=86400, description="for shards under way after the first signal; clusters grant 30 s as a rule"
    )
    tick_s: float = Field(0.5, gt=0, le=60)
    replica_start_s_max: float = Field(600.0, gt=0, le=86400, description="for a replica to load its codec")
    replica_starts_max: int = Field(5, ge=1, le=1000, description="starts in a row that may fail before the run stops")
    status_every_s: float = Field(10.0, gt=0, le=3600)
    manifest_every_s: float = Field(600.0, gt=0, le=86400)


class RayConfig(Group):
    """Placement of replicas on Ray."""

    address: str | None = Field(None, description="a cluster; default: RAY_ADDRESS, else a Ray of our own")
    cpus_per_replica: float = Field(1.0, ge=0, le=1024)
    gpus_per_replica: float | None = Field(None, ge=0, le=64, description="default: 1 on cuda, 0 on cpu")
    memory_bytes_per_replica: int = Field(
        0, ge=0, description="asked of Ray, so that `auto` does not overfill a host; 0 asks for none"
    )
    resources: dict[str, float] = Field(default_factory=dict, description="custom resources a replica asks for")
