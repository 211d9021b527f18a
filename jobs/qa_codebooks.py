"""How the codebooks of a job are used: entries, perplexity, entries never seen, ids that repeat."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.token_rows import TokenRules
from pipeline.types import TokenRow


@dataclass
class Codebook:
    """The ids of one codebook in all rows counted; `counts` int64 [cardinality]."""

    name: str
    counts: NDArray[np.int64]
    num_repeated: int = 0
    num_steps: int = 0
    longest_run: int = 0
    longest_run_key: str = ""

    @property
    def cardinality(self) -> int:
        """Its entries."""
        return len(self.counts)

    @property
    def num_used(self) -> int:
        """Entries seen at least once."""
        return int(np.count_nonzero(self.counts))

    @property
    def num_dead(self) -> int:
        """Entries never seen; of few frames there must be some."""
        return self.cardinality - self.num_used

    @property
    def perplexity(self) -> float:
        """exp of the entropy in nats: as many entries, equally often used, would be as surprising. 0 without ids."""
        total = self.counts.sum()
        shares = self.counts[self.counts > 0] / total if total else np.empty(0)
        return float(np.exp(-(shares * np.log(shares)).sum())) if total else 0.0

    @property
    def repetition(self) -> float:
        """The share of frames whose id is that of the frame before."""
        return self.num_repeated / self.num_steps if self.num_steps else 0.0

    def count(self, ids: NDArray[np.uint16], key: str) -> None:
        """One row's ids [F]."""
        self.counts += np.bincount(ids, minlength=self.cardinality)
        changes = np.flatnonzero(np.diff(ids.astype(np.int64)))
        self.num_steps += len(ids) - 1
        self.num_repeated += len(ids) - 1 - len(changes)
        run = int(np.diff(np.concatenate(([-1], changes, [len(ids) - 1]))).max())
        if run > self.longest_run:
            self.longest_run, self.longest_run_key = run, key


@dataclass
class CodebookUse:
    """All codebooks of a job, the semantic one first."""

    codebooks: list[Codebook]
    num_rows: int = 0
    num_frames: int = 0
    _semantic: Codebook | None = field(init=False, repr=False)
    _acoustic: list[Codebook] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._semantic = next((one for one in self.codebooks if one.name == "semantic"), None)
        self._acoustic = [one for one in self.codebooks if one is not self._semantic]

    @classmethod
    def of(cls, rules: TokenRules) -> CodebookUse:
        """Nothing counted yet."""
        sizes = {"semantic": rules.semantic_cardinality} if "semantic" in rules.streams else {}
        sizes |= {f"acoustic_{index}": size for index, size in enumerate(rules.acoustic_cardinalities)}
        return cls([Codebook(name, np.zeros(size, np.int64)) for name, size in sizes.items()])

    def count(self, row: TokenRow) -> None:
        """One row's ids."""
        self.num_rows += 1
        self.num_frames += row.num_frames
        if self._semantic is not None and row.semantic is not None:
            self._semantic.count(row.semantic, row.key)
        if row.acoustic is not None:
            for codebook, ids in zip(self._acoustic, row.acoustic, strict=False):
                codebook.count(ids, row.key)
