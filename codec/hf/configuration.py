"""The sizes of a LongCat model as transformers keeps them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from codec.longcat.config import PUBLISHED, parse_config
from codec.longcat.config import LongCatConfig as LongCatSizes
from codec.longcat.converted import MODEL_TYPE, sizes_of

_PUBLISHED = PUBLISHED.model_dump(mode="json")


class LongCatConfig(PreTrainedConfig):
    """Sizes by part, as in `codec.longcat.config`; by default the published ones.

    Raises `CheckpointError` with each part's field that is unknown, missing or wrong.
    """

    model_type: ClassVar[str] = MODEL_TYPE
    attribute_map: ClassVar[dict[str, str]] = {"sample_rate": "sampling_rate"}

    sampling_rate: int = PUBLISHED.sample_rate_hz
    acoustic: dict[str, Any] | None = None
    semantic: dict[str, Any] | None = None
    decoders: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for part in ("acoustic", "semantic", "decoders"):
            if getattr(self, part) is None:
                setattr(self, part, copy.deepcopy(_PUBLISHED[part]))
        super().__post_init__(**kwargs)
        _ = self.sizes  # a wrong size is told now, not by a tensor's shape

    @classmethod
    def of(cls, sizes: LongCatSizes) -> LongCatConfig:
        """The config of these sizes."""
        parts = sizes.model_dump(mode="json", include={"acoustic", "semantic", "decoders"})
        return cls(sampling_rate=sizes.sample_rate_hz, **parts)

    @property
    def sizes(self) -> LongCatSizes:
        """All sizes, checked."""
        settings = {name: getattr(self, name) for name in ("sampling_rate", "acoustic", "semantic", "decoders")}
        return parse_config(sizes_of(settings), Path("config.json"))

    @property
    def hop_length(self) -> int:
        """Audio samples of a frame."""
        return self.sizes.frame_size

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sizes.sample_rate_hz / self.sizes.frame_size

    @property
    def codebook_sizes(self) -> list[int]:
        """Ids of each codebook, in the order of `audio_codes`: semantic, then acoustic coarse to fine."""
        sizes = self.sizes
        return [sizes.semantic.cardinality, *[sizes.acoustic.cardinality] * sizes.acoustic.num_codebooks]

    @property
    def num_quantizers(self) -> int:
        """Codebooks, the semantic one among them."""
        return len(self.codebook_sizes)
