"""Waveforms as LongCat takes them: mono, at 16 kHz, padded together with a mask."""

from __future__ import annotations

from typing import Any

from transformers import EncodecFeatureExtractor

from codec.longcat.config import PUBLISHED


class LongCatFeatureExtractor(EncodecFeatureExtractor):
    """EnCodec's, at LongCat's rate and without its chunks: `input_values` [B, 1, T] and `padding_mask` [B, T]."""

    def __init__(self, sampling_rate: int = PUBLISHED.sample_rate_hz, **kwargs: Any) -> None:
        super().__init__(sampling_rate=sampling_rate, **kwargs)
