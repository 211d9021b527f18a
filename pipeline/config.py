"""One validated config for a job: every bound has a name, a default and a range here, and nowhere else.

Fields marked `TOKENS` decide the tokens (or which samples are rejected) and so enter the fingerprint;
all others may change between the runs of one job.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from codec.base import CodecInfo
from pipeline.errors import ConfigError

FORMAT_VERSION = 1
"""Of the output place: raised when a reader of the old one could misread the new one."""

TOKENS_VERSION = 4
"""Of how tokens and rejects are made: raised when the same settings give others, so that no output mixes two."""

TOKENS: dict[str, Any] = {"decides_tokens": True}

MESSAGE_CHARS_MAX = 1000
"""Of what is said of one setting."""

Stream = Literal["semantic", "acoustic"]
Device = Literal["cpu", "cuda"]


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StorageConfig(_Group):
    """How stores are spoken to. Secrets never stand here: they come from the environment or the profile."""

    endpoint_url: str | None = Field(None, description="S3 endpoint; default: AWS_ENDPOINT_URL, then AWS's own")
    profile: str | None = Field(None, description="profile of ~/.aws; default: AWS_PROFILE")
    anonymous: bool = Field(False, description="sign no request: for public buckets")
    connect_timeout_s: float = Field(10.0, gt=0, le=600)
    read_timeout_s: float = Field(60.0, gt=0, le=3600, description="between two bytes of an answer")
    request_s_max: float = Field(300.0, gt=0, le=3600, description="for one request as a whole")
    connections_max: int = Field(32, ge=1, le=1024)
    part_bytes: int = Field(16 << 20, ge=5 << 20, le=1 << 30, description="part size of a multipart upload")


class RetryConfig(_Group):
    """The one policy for a call to a store: full jitter between zero and an exponential bound."""

    attempts_max: int = Field(8, ge=1, le=100)
    backoff_s: float = Field(0.2, gt=0, le=60)
    backoff_s_max: float = Field(20.0, gt=0, le=600)
    total_s_max: float = Field(300.0, gt=0, le=86400)


class ReadingConfig(_Group):
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


class DecodingConfig(_Group):
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


class BatchingConfig(_Group):
    """How clips become batches; decides padded shapes, so it is part of the fingerprint."""

    batch_s: float = Field(60.0, gt=0, le=86400, description="padded seconds of one batch", json_schema_extra=TOKENS)
    batch_size_max: int = Field(64, ge=1, le=65536, json_schema_extra=TOKENS)
    batch_cost_s: float | None = Field(
        None,
        ge=0,
        le=86400,
        description="padding that a batch fewer is worth, in seconds; default: 0.5, where padding costs nothing 8",
        json_schema_extra=TOKENS,
    )
    window_s: float = Field(
        1200.0, gt=0, le=86400, description="seconds of clips sorted by length at once", json_schema_extra=TOKENS
    )
    segment_s: float = Field(
        30.0, gt=0, le=3600, description="longest segment of a long clip", json_schema_extra=TOKENS
    )
    segment_search_s: float = Field(
        5.0, ge=0, le=3600, description="a cut is sought this far before the segment's end", json_schema_extra=TOKENS
    )
    windows_in_flight: int = Field(1, ge=1, le=16, description="windows read ahead of the codec, a shard")


class WritingConfig(_Group):
    """Token shards."""

    row_group_rows: int = Field(1024, ge=1, json_schema_extra=TOKENS)
    compression: Literal["zstd", "none"] = Field("zstd", json_schema_extra=TOKENS)


class RunningConfig(_Group):
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


class RayConfig(_Group):
    """Placement of replicas on Ray."""

    address: str | None = Field(None, description="a cluster; default: RAY_ADDRESS, else a Ray of our own")
    cpus_per_replica: float = Field(1.0, ge=0, le=1024)
    gpus_per_replica: float | None = Field(None, ge=0, le=64, description="default: 1 on cuda, 0 on cpu")
    memory_bytes_per_replica: int = Field(
        0, ge=0, description="asked of Ray, so that `auto` does not overfill a host; 0 asks for none"
    )
    resources: dict[str, float] = Field(default_factory=dict, description="custom resources a replica asks for")


class JobConfig(_Group):
    """A job: inputs, output and all settings."""

    input: tuple[str, ...] = Field(min_length=1, description="shards: URIs, globs, braces, folders, @list files")
    output: str = Field(min_length=1)
    codec: str = Field("longcat", json_schema_extra=TOKENS)
    streams: tuple[Stream, ...] = Field(("semantic", "acoustic"), min_length=1, json_schema_extra=TOKENS)
    num_acoustic_codebooks: int | None = Field(None, ge=1, description="default: all", json_schema_extra=TOKENS)
    format: Literal["parquet", "webdataset"] = Field("parquet", json_schema_extra=TOKENS)
    carry: tuple[str, ...] = Field((), description="suffixes of sidecars to carry over", json_schema_extra=TOKENS)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = Field("float32", json_schema_extra=TOKENS)
    cpu_threads: int = Field(1, ge=1, le=1024, description="of a replica's codec", json_schema_extra=TOKENS)
    executor: Literal["ray", "inline"] = "ray"
    replicas: Annotated[int, Field(ge=1, le=100_000)] | Literal["auto"] = "auto"
    allow_unsafe_store: bool = False
    redo_changed: bool = False
    retry_failed: bool = False

    storage: StorageConfig = StorageConfig()
    retry: RetryConfig = RetryConfig()
    reading: ReadingConfig = ReadingConfig()
    decoding: DecodingConfig = DecodingConfig()
    batching: BatchingConfig = BatchingConfig()
    writing: WritingConfig = WritingConfig()
    running: RunningConfig = RunningConfig()
    ray: RayConfig = RayConfig()

    @field_validator("input", "streams", "carry", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("streams")
    @classmethod
    def _streams_in_order(cls, value: tuple[Stream, ...]) -> tuple[Stream, ...]:
        known: tuple[Stream, ...] = ("semantic", "acoustic")
        return tuple(stream for stream in known if stream in value)

    @field_validator("carry")
    @classmethod
    def _carry_in_order(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        taken = sorted(name for name in value if name in RESERVED_NAMES or re.match(r"acoustic_|__", name))
        if taken:
            raise ValueError(f"{taken} are names that token shards use themselves; carry other suffixes")
        bad = sorted(name for name in value if not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", name))
        if bad:
            raise ValueError(f"{bad} are not lower-case suffixes such as 'txt' or 'json'")
        return tuple(sorted(set(value)))

    @field_validator("input")
    @classmethod
    def _no_pipes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for uri in value:
            check_uri(uri.removeprefix("@"))
        return value

    @field_validator("storage")
    @classmethod
    def _no_secret_in_endpoint(cls, value: StorageConfig) -> StorageConfig:
        if "@" in (value.endpoint_url or ""):
            raise ValueError("endpoint_url has credentials in it; give them by environment or profile")
        return value

    @field_validator("output", "codec")
    @classmethod
    def _no_secrets(cls, value: str) -> str:
        check_uri(value)
        return "calibrated:" if value == "calibrated" else value.rstrip("/") or value

    @model_validator(mode="after")
    def _consistent(self) -> JobConfig:
        if self.batching.segment_s > self.batching.batch_s:
            raise ValueError(
                f"batching.segment_s ({self.batching.segment_s}) is above batching.batch_s "
                f"({self.batching.batch_s}): a segment would fit no batch"
            )
        if self.executor == "inline" and self.replicas not in (1, "auto"):
            raise ValueError(f"replicas is {self.replicas}, the inline executor has one; use --executor ray")
        if self.num_acoustic_codebooks is not None and "acoustic" not in self.streams:
            raise ValueError("num_acoustic_codebooks is set but streams has no 'acoustic'")
        return self


RESERVED_NAMES = frozenset(
    {
        "semantic.npy",
        "acoustic.npy",
        "source.json",
        "key",
        "num_frames",
        "num_audio_samples",
        "source_sample_rate_hz",
        "source_num_channels",
        "segments",
        "semantic",
        "acoustic",
    }
)

URI_SCHEMES = ("file", "s3", "hf", "calibrated")


def check_uri(uri: str) -> None:
    """Refuse what is no plain path or known scheme, and URIs that carry credentials.

    Raises `ValueError`; `pipe:` and http inputs of WebDataset, and chains of fsspec (`simplecache::http://`), are
    refused here, since they would run programs or reach addresses inside a cluster.
    """
    if uri.startswith("pipe:"):
        raise ValueError("'pipe:' inputs run programs and are refused; give a path or an s3:// URI")
    if not uri.strip():
        raise ValueError("is no place; give a path or an s3:// URI")
    if "\0" in uri:
        raise ValueError("has a NUL character in it, which no name can hold")
    match = re.match(r"([A-Za-z][A-Za-z0-9+.:-]+):(/+)([^/]*)", uri)
    if not match:
        return
    scheme, slashes, authority = match.groups()
    if scheme not in URI_SCHEMES:
        raise ValueError(f"scheme {scheme!r} is not known; allowed: a plain path, {', '.join(URI_SCHEMES)}")
    if slashes not in ("//", "///") or (slashes == "///" and scheme != "file") or not authority:
        raise ValueError(f"is no {scheme}:// URI with a name behind it; is a variable empty?")
    if scheme != "file" and re.search("[@:]", authority):
        raise ValueError(
            f"a {scheme}:// URI has credentials in it; give them by environment or profile (storage.profile)"
        )


def load_config(values: Mapping[str, Any]) -> JobConfig:
    """The validated config of nested plain values. Raises `ConfigError` with one line per fault."""
    try:
        return JobConfig.model_validate(dict(values))
    except ValidationError as error:
        lines = [_explain(dict(fault)) for fault in error.errors(include_url=False)]
        raise ConfigError("the config has " + str(len(lines)) + " fault(s):\n  " + "\n  ".join(lines)) from None


class _Shown(reprlib.Repr):
    """Values as in Python, cut where they are long or nested, so that a message is bounded; without secrets."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = 400

    def repr_str(self, x: str, level: int) -> str:
        return super().repr_str(without_credentials(x), level)


def _explain(fault: dict[str, Any]) -> str:
    if fault["type"] == "extra_forbidden":
        return _explain_unknown([str(part) for part in fault["loc"]])
    # A union's members stand in the place as well, under names that mean nothing to people.
    name = ".".join(str(part) for part in fault["loc"] if re.fullmatch(r"\w+", str(part)))
    if fault["type"] == "missing":
        return f"{name}: is required"
    message = without_credentials(fault["msg"].removeprefix("Value error, "))[:MESSAGE_CHARS_MAX]
    if not name:
        return message
    return f"{name}: found {_Shown().repr(fault['input'])}; {message}"


def _explain_unknown(location: Sequence[str]) -> str:
    group: type[BaseModel] = JobConfig
    for part in location[:-1]:
        annotation = group.model_fields[part].annotation
        assert isinstance(annotation, type)
        group = annotation
    known = sorted(group.model_fields)
    near = difflib.get_close_matches(location[-1].replace("-", "_"), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return f"{_shown_name('.'.join(location))}: no such setting; {hint}"


def _shown_name(name: str) -> str:
    """A setting's name as it was written, in quotes where it is none that a setting could have."""
    return name if re.fullmatch(r"[\w.-]{1,100}", name) else _Shown().repr(name)


def without_credentials(text: str) -> str:
    """The text with what stands before an `@` of a URI blotted out, and the values of a URL's query."""
    blotted = re.sub(r"(:/+|//).*@", r"\1***@", text, flags=re.DOTALL)
    return re.sub(r"([?&][\w.-]+=)[^&\s'\"]+", r"\1***", blotted)


def token_settings(config: JobConfig) -> dict[str, Any]:
    """The settings that decide the tokens, flat, by dotted name."""
    return dict(_marked(config, prefix=""))


def _marked(group: BaseModel, prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, spec in type(group).model_fields.items():
        value = getattr(group, name)
        if isinstance(value, BaseModel):
            found += _marked(value, prefix=f"{prefix}{name}.")
        elif isinstance(spec.json_schema_extra, dict) and spec.json_schema_extra.get("decides_tokens"):
            found.append((prefix + name, list(value) if isinstance(value, tuple) else value))
    return found


def fingerprint_parts(config: JobConfig, codec: CodecInfo, device: Device) -> dict[str, Any]:
    """All that decides the tokens of a shard, by name.

    The codec counts by what it is (its name and checkpoint's hash), not by the place it was loaded from.
    """
    parts = token_settings(config)
    del parts["codec"]
    num_codebooks = config.num_acoustic_codebooks or len(codec.acoustic_cardinalities)
    parts.update(
        {
            "num_acoustic_codebooks": num_codebooks if "acoustic" in config.streams else 0,
            "format_version": FORMAT_VERSION,
            "tokens_version": TOKENS_VERSION,
            "codec.name": codec.name,
            "codec.checkpoint_hash": codec.checkpoint_hash,
            "codec.sample_rate_hz": codec.sample_rate_hz,
            "codec.frame_size": codec.frame_size,
            "codec.semantic_cardinality": codec.semantic_cardinality,
            "codec.acoustic_cardinalities": list(codec.acoustic_cardinalities),
            "device": device,
        }
    )
    return dict(sorted(parts.items()))


def fingerprint(parts: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over the parts as canonical JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
