"""A LongCat checkpoint that was found, as a codec to be loaded."""

from __future__ import annotations

from dataclasses import dataclass

from codec.base import CodecInfo
from codec.longcat.model import LongCatCodec
from codec.longcat.weights import Weights


@dataclass(frozen=True)
class LongCatLoader:
    """A `codec.base.CodecLoader`."""

    checkpoint: Weights

    def info(self) -> CodecInfo:
        """What the codec is."""
        return self.checkpoint.info()

    def load(self, *, device: str, precision: str) -> LongCatCodec:
        """The codec, its encoder loaded. Raises as `LongCatCodec` does."""
        return LongCatCodec(self.checkpoint, device=device, precision=precision)
