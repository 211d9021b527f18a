"""What must be true of one committed token shard: bytes, counts, ids, frames, keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from typing import IO

import pyarrow.parquet as pq

from pipeline.fetch import fetch_object
from pipeline.layout import OutputPlace
from pipeline.records import CommitRecord
from pipeline.storage import Store
from pipeline.token_rows import READ_ERRORS, TokenRules, read_rows, row_faults
from pipeline.types import TokenRow
from pipeline.writer import REJECTS_SCHEMA


@dataclass
class _Found:
    """What the rows of a shard came to, to be compared with the counts of its commit."""

    faults: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    num_frames: int = 0
    num_audio_samples: int = 0
    num_frames_by_codebooks: Counter[int] = field(default_factory=Counter)


def check_tokens(store: Store, place: OutputPlace, record: CommitRecord, rules: TokenRules) -> Iterator[str]:
    """Every fault of the objects of one committed token shard, as a line."""
    with ExitStack() as files:
        fetched: dict[str, IO[bytes]] = {}
        for item in record.objects:
            file = files.enter_context(TemporaryFile(prefix="voxmill-"))
            fault = fetch_object(store, place.uri(item.path), item, file)
            if fault:
                yield f"{item.path}: {fault}"
            else:
                fetched[item.path.split("/")[0]] = file
        if len(fetched) == len(record.objects):
            yield from _check_contents(fetched, rules, record)


def _check_contents(files: dict[str, IO[bytes]], rules: TokenRules, record: CommitRecord) -> Iterator[str]:
    counts = record.counts
    try:
        rows = read_rows(files, rules, sidecars=False)
        rejects = _count_rejects(files["rejects"]) if "rejects" in files else {}
        rows_found = _check_rows(rows, rules)
    except (*READ_ERRORS, OSError) as error:
        yield f"cannot be read as token shard: {type(error).__name__}: {error}"
        return
    yield from rows_found.faults
    num_rows, num_audio_samples = len(rows_found.keys), rows_found.num_audio_samples
    found = {"num_rows": num_rows, "num_frames": rows_found.num_frames, "num_audio_samples": num_audio_samples}
    num_rejected = sum(rejects.values())
    found |= {"num_rejected": num_rejected, "num_samples": num_rows + num_rejected}
    for name, value in found.items():
        if value != getattr(counts, name):
            yield f"{name} is {value}, its commit says {getattr(counts, name)}"
    if rejects != counts.rejects:
        yield f"rejects by reason are {rejects}, its commit says {counts.rejects}"
    if rows_found.num_frames_by_codebooks != counts.num_frames_by_codebooks:
        by_codebooks = dict(sorted(rows_found.num_frames_by_codebooks.items()))
        yield f"frames by codebooks are {by_codebooks}, its commit says {counts.num_frames_by_codebooks}"
    if abs(counts.audio_s - num_audio_samples / rules.sample_rate_hz) > 1e-3:
        yield f"audio_s is {num_audio_samples / rules.sample_rate_hz}, its commit says {counts.audio_s}"


def _count_rejects(file: IO[bytes]) -> dict[str, int]:
    table = pq.ParquetFile(file).read(use_threads=False)
    if not table.schema.equals(REJECTS_SCHEMA, check_metadata=False):
        raise ValueError(f"the reject list has columns {table.schema.names}")
    return dict(sorted(Counter(table["reason"].to_pylist()).items()))


def _check_rows(rows: Iterable[TokenRow], rules: TokenRules) -> _Found:
    found = _Found()
    for row in rows:
        if row.key in found.keys:
            found.faults.append(f"key {row.key!r} stands twice")
        found.keys.add(row.key)
        found.num_frames += row.num_frames
        found.num_audio_samples += row.num_audio_samples
        if rules.adaptive and row.acoustic is not None:
            found.num_frames_by_codebooks[len(row.acoustic)] += row.num_frames
        found.faults += [f"key {row.key!r}: {fault}" for fault in row_faults(row, rules)]
    return found
