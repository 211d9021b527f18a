"""What decides a job's output, as one hash: its settings, its codec, its device."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from codec.base import CodecInfo
from pipeline.config import CommonConfig, Device, JobConfig

FORMAT_VERSION = 1
"""Of the output place: raised when a reader of the old one could misread the new one."""

TOKENS_VERSION = 5
"""Of how tokens and rejects are made: raised when the same settings give others, so that no output mixes two."""


def token_settings(config: CommonConfig) -> dict[str, Any]:
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


def fingerprint_parts(config: JobConfig, codec: CodecInfo, device: Device, *, has_media: bool) -> dict[str, Any]:
    """All that decides the tokens of a shard, by name.

    The codec counts by what it is (its name and checkpoint's hash), not by the place it was loaded from. `has_media`
    is whether the extra `[media]` is there: without it other samples are rejects.
    """
    parts = token_settings(config)
    del parts["codec"]
    if config.auto_codebooks is not None:
        # Beside the number, which is that of the columns; and the parts of a fixed number stay what they were.
        parts["acoustic_residual_max"] = config.auto_codebooks.residual_max
    parts.update(
        {
            "num_acoustic_codebooks": config.num_codebooks_max(len(codec.acoustic_cardinalities)),
            "format_version": FORMAT_VERSION,
            "tokens_version": TOKENS_VERSION,
            "codec.name": codec.name,
            "codec.checkpoint_hash": codec.checkpoint_hash,
            "codec.sample_rate_hz": codec.sample_rate_hz,
            "codec.frame_size": codec.frame_size,
            "codec.semantic_cardinality": codec.semantic_cardinality,
            "codec.acoustic_cardinalities": list(codec.acoustic_cardinalities),
            "device": device,
            "has_media": has_media,
        }
    )
    return dict(sorted(parts.items()))


def fingerprint(parts: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over the parts as canonical JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
