"""The config of a job that turns tokens back into audio, and what of it decides that audio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from codec.base import DecoderInfo
from pipeline.config import CommonConfig, Device, Stream, streams_in_order
from pipeline.config_faults import validated
from pipeline.fingerprint import FORMAT_VERSION, token_settings
from pipeline.settings import TOKENS, BatchPlanConfig
from pipeline.uris import check_uri

AUDIO_VERSION = 2
"""Of how audio is made of tokens: raised when the same settings give other audio, so that no output mixes two."""


class AudioBatchingConfig(BatchPlanConfig):
    """How segments of tokens become batches. Decoders hold far more of a second of audio than encoders do."""

    batch_s: float = Field(30.0, gt=0, le=86400, description="padded seconds of one batch", json_schema_extra=TOKENS)
    batch_cost_s: float = Field(
        0.5, ge=0, le=86400, description="padding that a batch fewer is worth, in seconds", json_schema_extra=TOKENS
    )
    windows_in_flight: int = Field(1, ge=1, le=16, description="windows read ahead of the decoder, a shard")


class DecodeConfig(CommonConfig):
    """A job that makes audio of the committed tokens of another job. None and the empty codec: as there."""

    tokens: str = Field(min_length=1, description="output place of the job that made the tokens")
    codec: str = Field("", description="default: the one that made the tokens")
    sample_rate_hz: int = Field(ge=1, le=1_000_000, description="of the audio; one that the codec has a decoder for")
    streams: tuple[Stream, ...] | None = Field(None, min_length=1, description="default: all that the tokens have")
    num_acoustic_codebooks: int | None = Field(None, ge=1, description="default: all that the tokens have")
    format: Literal["shards", "files"] = Field("shards", json_schema_extra=TOKENS)
    audio: Literal["flac", "wav"] = Field("flac", json_schema_extra=TOKENS)

    batching: AudioBatchingConfig = AudioBatchingConfig()

    @field_validator("streams", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("streams")
    @classmethod
    def _streams_in_order(cls, value: tuple[Stream, ...] | None) -> tuple[Stream, ...] | None:
        return None if value is None else streams_in_order(value)

    @field_validator("tokens")
    @classmethod
    def _tokens_without_secrets(cls, value: str) -> str:
        check_uri(value)
        return value.rstrip("/") or value

    @model_validator(mode="after")
    def _consistent(self) -> DecodeConfig:
        if self.num_acoustic_codebooks is not None and self.streams is not None and "acoustic" not in self.streams:
            raise ValueError("num_acoustic_codebooks is set but streams has no 'acoustic'")
        return self


def load_decode_config(values: Mapping[str, Any]) -> DecodeConfig:
    """The validated config of nested plain values. Raises `ConfigError` with one line per fault."""
    return validated(DecodeConfig, values)


def audio_parts(
    config: DecodeConfig,
    decoder: DecoderInfo,
    device: Device,
    *,
    source_fingerprint: str,
    semantic: bool,
    num_acoustic_codebooks: int,
) -> dict[str, Any]:
    """All that decides the audio of a shard, by name; the tokens count by the fingerprint of their job."""
    parts = token_settings(config)
    parts.update(
        {
            "job": "decode",
            "format_version": FORMAT_VERSION,
            "audio_version": AUDIO_VERSION,
            "source.fingerprint": source_fingerprint,
            "semantic": semantic,
            "num_acoustic_codebooks": num_acoustic_codebooks,
            "decoder.name": decoder.name,
            "decoder.file_hash": decoder.file_hash,
            "decoder.sample_rate_hz": decoder.sample_rate_hz,
            "decoder.frame_size": decoder.frame_size,
            "device": device,
        }
    )
    return dict(sorted(parts.items()))
