"""LongCat as a model of the transformers package.

Importing this makes `AutoConfig`, `AutoModel`, `AutoModelForAudioTokenization` and `AutoFeatureExtractor` know it.
Raises `ImportError` where transformers is not installed; voxmill's extra `hf` has it.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization

from codec.hf.configuration import LongCatConfig
from codec.hf.feature_extraction import LongCatFeatureExtractor
from codec.hf.modeling import LongCatDecoderOutput, LongCatEncoderOutput, LongCatModel, LongCatOutput

__all__ = [
    "LongCatConfig",
    "LongCatDecoderOutput",
    "LongCatEncoderOutput",
    "LongCatFeatureExtractor",
    "LongCatModel",
    "LongCatOutput",
]

AutoConfig.register(LongCatConfig.model_type, LongCatConfig)
AutoModel.register(LongCatConfig, LongCatModel)
AutoModelForAudioTokenization.register(LongCatConfig, LongCatModel)
AutoFeatureExtractor.register(LongCatConfig, LongCatFeatureExtractor)
