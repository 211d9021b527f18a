"""How many acoustic codebooks a clip gets where the job leaves that to the clip, and what is saved by it.

Acoustic codebooks are nested: the first k of a clip are the same however many are computed. So one encode with all of
them serves, and what is written is cut to the fewest that leave little enough of the clip.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ALLOWED = (
    "allowed: a whole number from 1, or auto:residual=X with 0 < X < 1, the share of the energy of a clip's acoustic "
    "latents that may be left, e.g. auto:residual=0.05"
)


@dataclass(frozen=True, slots=True)
class AutoCodebooks:
    """`auto:residual=0.05`: the fewest codebooks that leave at most this share of a clip's energy."""

    residual_max: float

    @classmethod
    def parse(cls, text: str) -> AutoCodebooks:
        """Of its text. Raises `ValueError` saying what is allowed."""
        match = re.fullmatch(r"auto:residual=([0-9.eE+-]{1,40})", text)
        try:
            residual_max = float(match[1]) if match else math.nan
        except ValueError:
            residual_max = math.nan
        if not 0 < residual_max < 1:
            raise ValueError(ALLOWED)
        return cls(residual_max)

    def __str__(self) -> str:
        return f"auto:residual={self.residual_max!r}"

    def choose(self, energies: Sequence[float]) -> int:
        """The fewest codebooks that suffice, at least one; all where none does.

        `energies` are a clip's own: of its latents, and of what the first 1, 2, ... codebooks leave of them. What is
        left need not fall with each codebook.
        """
        num_codebooks = len(energies) - 1
        left_max = self.residual_max * energies[0]
        return next((k for k in range(1, num_codebooks + 1) if energies[k] <= left_max), num_codebooks)


@dataclass(frozen=True, slots=True)
class Savings:
    """What a choice of codebooks came to, in frames by how many codebooks they have, of a codec's cardinalities."""

    frames: Mapping[int, int]
    cardinalities: Sequence[int]

    @classmethod
    def of(cls, frames: Mapping[int, int], cardinalities: Sequence[int]) -> Savings | None:
        """None where no frame was counted: clips had no choice, or there is none yet."""
        return cls(frames, cardinalities) if any(frames.values()) else None

    @property
    def bits(self) -> float:
        """Acoustic bits that are not written: the logarithm of each left out codebook's cardinality, a frame."""
        return sum(count * self._bits_of(self.cardinalities[k:]) for k, count in self.frames.items())

    @property
    def share(self) -> float:
        """Of the acoustic bits that all codebooks would have taken."""
        all_bits = sum(self.frames.values()) * self._bits_of(self.cardinalities)
        return self.bits / all_bits if all_bits else 0.0

    def line(self) -> str:
        """For people."""
        num_frames = sum(self.frames.values())
        shares = ", ".join(f"{k} in {count / num_frames:.1%}" for k, count in sorted(self.frames.items()))
        return (
            f"{shares} of {num_frames} frames; {self.share:.1%} of the acoustic bits saved "
            f"({self.bits / 8e6:.3f} MB before compression)"
        )

    @staticmethod
    def _bits_of(cardinalities: Sequence[int]) -> float:
        return sum(math.log2(cardinality) for cardinality in cardinalities)
