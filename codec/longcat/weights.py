"""Where a LongCat codec's modules come from: published files, converted ones, or a model in memory."""

from __future__ import annotations

from math import prod
from typing import Protocol

from codec.base import CodecInfo, DecoderInfo
from codec.longcat.config import SEGMENT_S_MAX, LongCatConfig
from codec.longcat.decoder import LongCatDecoder
from codec.longcat.encoder import LongCatEncoder
from codec.longcat.features import FeatureConstants
from codec.sources import Source


class Weights(Protocol):
    """A checkpoint's sizes and modules, the latter on the CPU and float32 unless it says otherwise."""

    @property
    def config(self) -> LongCatConfig:
        """All sizes."""
        ...

    def info(self) -> CodecInfo:
        """What the codec is, without loading weights."""
        ...

    def load_encoder(self) -> LongCatEncoder:
        """Both encoders and their codebooks. Raises `CheckpointError` where the files are wrong."""
        ...

    def load_feature_constants(self) -> FeatureConstants:
        """The constants of the log-mel features. Raises `CheckpointError` where the files are wrong."""
        ...

    def load_decoder(self, name: str) -> LongCatDecoder:
        """A decoder of the config. Raises `CheckpointError` where its file is missing or wrong."""
        ...


class DecoderWeights(Protocol):
    """A checkpoint as far as its decoders go."""

    @property
    def source(self) -> Source:
        """Where it is."""
        ...

    def decoder_info(self, sample_rate_hz: int, num_acoustic_codebooks: int) -> DecoderInfo:
        """The decoder that `choose_decoder` takes. Raises `ValueError` as that, `CheckpointError` without its file."""
        ...

    def load_decoder(self, name: str) -> LongCatDecoder:
        """As `Weights.load_decoder`."""
        ...


def decoder_info_of(config: LongCatConfig, name: str, *, file_hash: str) -> DecoderInfo:
    """What a decoder of these sizes is."""
    decoder = config.decoders[name]
    return DecoderInfo(
        name=name,
        file_hash=file_hash,
        sample_rate_hz=decoder.sample_rate_hz,
        frame_size=prod(decoder.rates),
        semantic_cardinality=config.semantic.cardinality,
        acoustic_cardinalities=(config.acoustic.cardinality,) * decoder.num_codebooks,
    )


def info_of(config: LongCatConfig, *, checkpoint_hash: str) -> CodecInfo:
    """What a LongCat codec of these sizes is."""
    acoustic = config.acoustic
    return CodecInfo(
        name=config.codec,
        checkpoint_hash=checkpoint_hash,
        sample_rate_hz=config.sample_rate_hz,
        frame_size=config.frame_size,
        semantic_cardinality=config.semantic.cardinality,
        acoustic_cardinalities=(acoustic.cardinality,) * acoustic.num_codebooks,
        segment_s_max=SEGMENT_S_MAX,
        decoder_sample_rates_hz=tuple(sorted({decoder.sample_rate_hz for decoder in config.decoders.values()})),
        tells_residuals=True,
    )
