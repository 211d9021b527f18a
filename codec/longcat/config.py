"""The sizes of a LongCat checkpoint: `config.json` beside it, or the published ones."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from codec.base import CheckpointError

SEGMENT_S_MAX = 30.0
"""The longest clip the published semantic model was made for."""

HOP_MS = 10
"""One step of the log-mel features."""

_Count = Annotated[int, Field(ge=1)]
_Steps = Annotated[tuple[_Count, ...], Field(min_length=1)]
_DecoderName = Annotated[str, StringConstraints(pattern=r"^[0-9a-z_]+$")]


class _Sizes(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class AcousticConfig(_Sizes):
    """The acoustic encoder and its residual quantizers (each of two halves)."""

    width: _Count
    strides: _Steps
    latent_dim: _Count
    num_codebooks: _Count
    half_cardinality: _Count
    search_dim: _Count

    @property
    def cardinality(self) -> int:
        """Ids of one codebook: every pair of entries of its two halves."""
        return self.half_cardinality**2


class SemanticConfig(_Sizes):
    """The semantic transformer and its codebook."""

    num_layers: _Count
    width: _Count
    num_heads: _Count
    feed_forward_dim: _Count
    time_strides: Annotated[tuple[_Count, ...], Field(min_length=2, max_length=2)]
    cardinality: _Count


class DecoderConfig(_Sizes):
    """One decoder; `causal` is all but the look-ahead of its first convolution."""

    sample_rate_hz: _Count
    width: _Count
    rates: _Steps
    num_codebooks: _Count
    causal: bool


class LongCatConfig(_Sizes):
    """All sizes of one checkpoint."""

    codec: Literal["longcat"]
    sample_rate_hz: Literal[16000]
    acoustic: AcousticConfig
    semantic: SemanticConfig
    decoders: dict[_DecoderName, DecoderConfig]

    @property
    def frame_size(self) -> int:
        """Audio samples of one frame."""
        return prod(self.acoustic.strides)

    @model_validator(mode="after")
    def _consistent(self) -> LongCatConfig:
        acoustic, semantic = self.acoustic, self.semantic
        semantic_step = self.sample_rate_hz * HOP_MS // 1000 * prod(semantic.time_strides)
        if self.frame_size != semantic_step:
            raise ValueError(
                f"acoustic.strides make frames of {self.frame_size} samples but semantic.time_strides frames of "
                f"{semantic_step}; they must be equal"
            )
        if semantic.width % semantic.num_heads or semantic.width % 2:
            raise ValueError(
                f"semantic.width is {semantic.width}; it must be even and a multiple of semantic.num_heads "
                f"({semantic.num_heads})"
            )
        if acoustic.latent_dim % 2:
            raise ValueError(f"acoustic.latent_dim is {acoustic.latent_dim}; it must be even, two halves of a codebook")
        for name, decoder in self.decoders.items():
            self._check_decoder(name, decoder)
        return self

    def _check_decoder(self, name: str, decoder: DecoderConfig) -> None:
        if prod(decoder.rates) * self.sample_rate_hz != self.frame_size * decoder.sample_rate_hz:
            raise ValueError(
                f"decoders.{name}.rates make {prod(decoder.rates)} samples a frame; "
                f"{decoder.sample_rate_hz} Hz needs {self.frame_size * decoder.sample_rate_hz / self.sample_rate_hz:g}"
            )
        if decoder.width % 2 ** len(decoder.rates):
            raise ValueError(
                f"decoders.{name}.width is {decoder.width}; it is halved {len(decoder.rates)} times, "
                f"so it must be a multiple of {2 ** len(decoder.rates)}"
            )
        if decoder.num_codebooks > self.acoustic.num_codebooks:
            raise ValueError(
                f"decoders.{name}.num_codebooks is {decoder.num_codebooks}; "
                f"the encoder has {self.acoustic.num_codebooks}"
            )


def read_config(path: Path) -> LongCatConfig:
    """The sizes in a `config.json`. Raises `CheckpointError` as `parse_config`."""
    return parse_config(path.read_bytes(), path)


def parse_config(content: bytes, path: Path) -> LongCatConfig:
    """The sizes in JSON of a file. Raises `CheckpointError` with every unknown, missing or wrong field by name."""
    try:
        return LongCatConfig.model_validate_json(content)
    except ValidationError as error:
        faults = [
            f"{'.'.join(str(part) for part in fault['loc']) or 'the whole'}: {fault['msg']}"
            for fault in error.errors(include_url=False, include_input=False)
        ]
        raise CheckpointError(
            f"{path} has {len(faults)} fault(s), put them right or remove the file for the published sizes:\n  "
            + "\n  ".join(faults)
        ) from None


PUBLISHED = LongCatConfig(
    codec="longcat",
    sample_rate_hz=16000,
    acoustic=AcousticConfig(
        width=64, strides=(4, 5, 6, 8), latent_dim=1024, num_codebooks=3, half_cardinality=90, search_dim=8
    ),
    semantic=SemanticConfig(
        num_layers=26, width=1280, num_heads=20, feed_forward_dim=5120, time_strides=(2, 3), cardinality=8192
    ),
    decoders={
        "16k_4codebooks": DecoderConfig(
            sample_rate_hz=16000, width=1536, rates=(8, 6, 5, 4), num_codebooks=3, causal=False
        ),
        "24k_2codebooks": DecoderConfig(
            sample_rate_hz=24000, width=1536, rates=(8, 6, 6, 5), num_codebooks=1, causal=True
        ),
        "24k_4codebooks": DecoderConfig(
            sample_rate_hz=24000, width=1536, rates=(8, 6, 6, 5), num_codebooks=3, causal=True
        ),
    },
)
"""The sizes of the published checkpoint, for a folder without a `config.json`."""
