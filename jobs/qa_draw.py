"""Which rows a look at a job's tokens is taken at: drawn by a seed from all committed ones, each as likely."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from jobs.qa_codebooks import CodebookUse
from pipeline.records import CommitRecord
from pipeline.token_reader import TokenReader
from pipeline.types import TokenRow


@dataclass(frozen=True, slots=True)
class DrawnRow:
    """A row, and the commit that it is of; `position` is its place among the shard's rows."""

    record: CommitRecord
    position: int
    row: TokenRow


def draw(source: TokenReader, num_rows: int, seed: int, use: CodebookUse) -> Iterator[DrawnRow]:
    """So many rows, or all where there are fewer, in the order of shard ids; `use` counts all rows of their shards.

    Raises as `TokenReader.read`.
    """
    rows = source.manifest().rows
    num_rows_of = rows.num_rows()  # a number a shard: records of all would be gigabytes where shards are millions
    shard_ids = sorted(num_rows_of)
    ends = np.cumsum([num_rows_of[shard_id] for shard_id in shard_ids])
    total = int(ends[-1]) if len(ends) else 0
    chosen = np.sort(np.random.default_rng(seed).choice(total, min(num_rows, total), replace=False))
    shard_of = np.searchsorted(ends, chosen, side="right")
    for shard in np.unique(shard_of):
        record = rows[shard_ids[shard]].record
        wanted = set((chosen[shard_of == shard] - (ends[shard] - record.counts.num_rows)).tolist())
        for position, row in enumerate(source.read_commit(record)):
            use.count(row)
            if position in wanted:
                yield DrawnRow(record, position, row)


def beginning(row: TokenRow, num_audio_samples_max: int) -> TokenRow:
    """The row up to the last segment that ends within so many samples; its first one at least."""
    num_segments = max(1, sum(part.start + part.length <= num_audio_samples_max for part in row.segments))
    segments = row.segments[:num_segments]
    num_frames = sum(part.num_frames for part in segments)
    return replace(
        row,
        num_frames=num_frames,
        num_audio_samples=sum(part.length for part in segments),
        segments=segments,
        semantic=None if row.semantic is None else row.semantic[:num_frames],
        acoustic=None if row.acoustic is None else row.acoustic[:, :num_frames],
    )
