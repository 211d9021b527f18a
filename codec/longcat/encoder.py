"""The encoder file's module tree: its names are the names in the checkpoint."""

from __future__ import annotations

from torch import nn

from codec.longcat.acoustic import AcousticEncoder
from codec.longcat.config import LongCatConfig, SemanticConfig
from codec.longcat.quantizer import NearestColumn, ResidualCodebooks
from codec.longcat.semantic import SemanticEncoder


class SemanticTokenizer(nn.Module):
    """The semantic encoder and its codebook."""

    def __init__(self, config: SemanticConfig) -> None:
        super().__init__()
        self.model = SemanticEncoder(config)
        self.kmeans = NearestColumn(config)


class LongCatEncoder(nn.Module):
    """All learned tensors of the encoder file."""

    def __init__(self, config: LongCatConfig) -> None:
        super().__init__()
        self.encoder = AcousticEncoder(config.acoustic)
        self.acoustic_quantizer = ResidualCodebooks(config.acoustic, config.acoustic.num_codebooks)
        self.semantic_tokenizer = SemanticTokenizer(config.semantic)
