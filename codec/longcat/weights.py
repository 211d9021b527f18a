"""Where a LongCat codec's modules come from: published files, converted ones, or a model in memory."""

from __future__ import annotations

from typing import Protocol

from codec.base import CodecInfo
from codec.longcat.config import SEGMENT_S_MAX, LongCatConfig
from codec.longcat.decoder import LongCatDecoder
from codec.longcat.encoder import LongCatEncoder
from codec.longcat.features import FeatureConstants


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
    )
