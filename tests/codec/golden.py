"""The golden checkpoint: a small LongCat with what the reference computed for nine clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parents[1] / "data"
GOLDEN = DATA / "longcat-golden"

CLIPS = (
    "16k_exact_15_frames",
    "16k_mono",
    "16k_one_sample_over_5_frames",
    "16k_short_350ms",
    "16k_tiny_300_samples",
    "22k_mono",
    "44k_stereo",
    "48k_mono",
    "8k_mono",
)


class Expected:
    """What the reference computed, as tensors; `expected["16k_mono/semantic"]`."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as arrays:
            self._arrays = {name: torch.from_numpy(arrays[name]) for name in arrays}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._arrays[name]

    def names(self) -> set[str]:
        return set(self._arrays)
