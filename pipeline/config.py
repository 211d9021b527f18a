"""One validated config for a job, of the groups in `settings`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, field_serializer, field_validator, model_validator

from pipeline.codebooks import ALLOWED, AutoCodebooks
from pipeline.config_faults import validated
from pipeline.errors import ConfigError
from pipeline.settings import (
    TOKENS,
    BatchingConfig,
    DecodingConfig,
    Group,
    RayConfig,
    ReadingConfig,
    RetryConfig,
    RunningConfig,
    StorageConfig,
    WritingConfig,
)
from pipeline.uris import check_uri

Stream = Literal["semantic", "acoustic"]
Device = Literal["cpu", "cuda"]

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


class CommonConfig(Group):
    """What every job has, whatever its replicas do with a shard: a place, a codec, replicas, patience."""

    output: str = Field(min_length=1)
    codec: str = Field("longcat", json_schema_extra=TOKENS)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cpu_threads: int = Field(1, ge=1, le=1024, description="of a replica's codec", json_schema_extra=TOKENS)
    executor: Literal["ray", "inline"] = "ray"
    replicas: Annotated[int, Field(ge=1, le=100_000)] | Literal["auto"] = "auto"
    allow_unsafe_store: bool = False
    redo_changed: bool = False
    retry_failed: bool = False

    storage: StorageConfig = StorageConfig()
    retry: RetryConfig = RetryConfig()
    running: RunningConfig = RunningConfig()
    ray: RayConfig = RayConfig()

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
    def _one_inline(self) -> CommonConfig:
        if self.executor == "inline" and self.replicas not in (1, "auto"):
            raise ValueError(f"replicas is {self.replicas}, the inline executor has one; use --executor ray")
        return self


def streams_in_order(value: tuple[Stream, ...]) -> tuple[Stream, ...]:
    """Each stream once, in the one order."""
    known: tuple[Stream, ...] = ("semantic", "acoustic")
    return tuple(stream for stream in known if stream in value)


class JobConfig(CommonConfig):
    """A job that makes tokens: inputs, output and all settings."""

    input: tuple[str, ...] = Field(min_length=1, description="shards: URIs, globs, braces, folders, @list files")
    streams: tuple[Stream, ...] = Field(("semantic", "acoustic"), min_length=1, json_schema_extra=TOKENS)
    num_acoustic_codebooks: int | AutoCodebooks | None = Field(
        None, description="or auto:residual=0.05, each clip its own; default: all", json_schema_extra=TOKENS
    )
    format: Literal["parquet", "webdataset"] = Field("parquet", json_schema_extra=TOKENS)
    carry: tuple[str, ...] = Field((), description="suffixes of sidecars to carry over", json_schema_extra=TOKENS)
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = Field("float32", json_schema_extra=TOKENS)

    reading: ReadingConfig = ReadingConfig()
    decoding: DecodingConfig = DecodingConfig()
    batching: BatchingConfig = BatchingConfig()
    writing: WritingConfig = WritingConfig()

    @field_validator("input", "streams", "carry", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("num_acoustic_codebooks", mode="before")
    @classmethod
    def _number_or_auto(cls, value: object) -> int | AutoCodebooks | None:
        if value is None or isinstance(value, AutoCodebooks):
            return value
        if isinstance(value, str) and value.startswith("auto"):
            return AutoCodebooks.parse(value)
        try:  # here, since a union would tell of each of its members why it is not meant
            return _COUNT.validate_python(value)
        except ValidationError:
            raise ValueError(ALLOWED) from None

    @field_serializer("num_acoustic_codebooks")
    def _as_written(self, value: int | AutoCodebooks | None) -> int | str | None:
        return str(value) if isinstance(value, AutoCodebooks) else value

    @field_validator("streams")
    @classmethod
    def _streams_in_order(cls, value: tuple[Stream, ...]) -> tuple[Stream, ...]:
        return streams_in_order(value)

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

    @model_validator(mode="after")
    def _consistent(self) -> JobConfig:
        if self.batching.segment_s > self.batching.batch_s:
            raise ValueError(
                f"batching.segment_s ({self.batching.segment_s}) is above batching.batch_s "
                f"({self.batching.batch_s}): a segment would fit no batch"
            )
        if self.num_acoustic_codebooks is not None and "acoustic" not in self.streams:
            raise ValueError("num_acoustic_codebooks is set but streams has no 'acoustic'")
        if self.auto_codebooks is not None and "num_acoustic_codebooks" in self.carry:
            raise ValueError(
                "carry has 'num_acoustic_codebooks', a name that token shards of such a job use themselves"
            )
        return self

    @property
    def auto_codebooks(self) -> AutoCodebooks | None:
        """How each clip's number of acoustic codebooks is chosen; None where all have the same."""
        asked = self.num_acoustic_codebooks
        return asked if isinstance(asked, AutoCodebooks) else None

    def num_codebooks_max(self, num_available: int) -> int:
        """How many acoustic codebooks are computed, of so many: what a row has at most; 0 without the stream."""
        if "acoustic" not in self.streams:
            return 0
        asked = self.num_acoustic_codebooks
        return asked if isinstance(asked, int) else num_available

    def check_codebooks(self, codec: str, num_available: int, *, tells_residuals: bool) -> None:
        """Raises `ConfigError` where a codec that has so many acoustic codebooks cannot do what is asked for."""
        asked = self.num_acoustic_codebooks
        if isinstance(asked, int) and asked > num_available:
            raise ConfigError(f"num_acoustic_codebooks is {asked}, codec {codec} has {num_available}")
        if isinstance(asked, AutoCodebooks) and not tells_residuals:
            raise ConfigError(
                f"num_acoustic_codebooks is {asked}, but codec {codec} cannot tell what its codebooks leave of a clip; "
                f"give a number from 1 to {num_available}, or another codec"
            )


_COUNT = TypeAdapter(Annotated[int, Field(ge=1)])


def load_config(values: Mapping[str, Any]) -> JobConfig:
    """The validated config of nested plain values. Raises `ConfigError` with one line per fault."""
    return validated(JobConfig, values)
