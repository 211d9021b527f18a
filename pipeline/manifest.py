"""The manifest: one row a committed shard, folded from the commit records; derived, and rebuilt at will."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commit import CommitEntry, find_commit, list_commits
from pipeline.config import FORMAT_VERSION
from pipeline.errors import ObjectMissingError
from pipeline.layout import OutputPlace
from pipeline.records import CommitRecord, Counts, InputRecord, ObjectRecord
from pipeline.storage import Store

MANIFEST_BYTES_MAX = 8 << 30
READERS = 16
"""Commit records fetched at once."""

_OBJECT = pa.struct([("path", pa.string()), ("num_bytes", pa.int64()), ("sha256", pa.string())])
_COUNTS = pa.list_(pa.struct([("name", pa.string()), ("count", pa.int64())]))
SCHEMA = pa.schema(
    [
        ("shard_id", pa.string()),
        ("term", pa.int32()),
        ("input_uri", pa.string()),
        ("input_size_bytes", pa.int64()),
        ("input_etag", pa.string()),
        ("attempt", pa.string()),
        ("objects", pa.list_(_OBJECT)),
        ("num_samples", pa.int64()),
        ("num_rows", pa.int64()),
        ("num_rejected", pa.int64()),
        ("rejects", _COUNTS),
        ("carried", _COUNTS),
        ("num_frames", pa.int64()),
        ("num_audio_samples", pa.int64()),
        ("audio_s", pa.float64()),
        ("num_halved_batches", pa.int64()),
        ("commit_etag", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """A committed shard; `commit_etag` is that of its commit record, so a changed record is seen."""

    record: CommitRecord
    commit_etag: str


@dataclass(slots=True)
class Manifest:
    """Committed shards by shard id."""

    fingerprint: str
    rows: dict[str, ManifestRow] = field(default_factory=dict)


def sum_counts(parts: Iterable[Counts]) -> Counts:
    """Field by field."""
    total = {"num_samples": 0, "num_rows": 0, "num_rejected": 0, "num_frames": 0, "num_audio_samples": 0}
    tables: dict[str, Counter[str]] = {"rejects": Counter(), "carried": Counter()}
    audio_s = 0.0
    for part in parts:
        for name in total:
            total[name] += getattr(part, name)
        for name, table in tables.items():
            table.update(getattr(part, name))
        audio_s += part.audio_s
    return Counts(**total, audio_s=audio_s, **{name: dict(sorted(table.items())) for name, table in tables.items()})


def fold_commits(store: Store, place: OutputPlace, fingerprint: str, *, known: Manifest | None = None) -> Manifest:
    """The manifest as the commits say now: one listing, and a read of each commit that is not known.

    What is `known` is by default the stored manifest's; a row counts only while its commit's ETag stands.
    """
    known = known or load_manifest(store, place, fingerprint)
    manifest = Manifest(fingerprint)
    wanted: list[CommitEntry] = []
    for entry in list_commits(store, place):
        row = known.rows.get(entry.shard_id)
        if row is not None and (row.record.term, row.commit_etag) == (entry.term, entry.etag):
            manifest.rows[entry.shard_id] = row
        else:
            wanted.append(entry)
    with ThreadPoolExecutor(READERS, thread_name_prefix="commits") as pool:
        records = pool.map(lambda entry: find_commit(store, place, entry.shard_id), wanted)
        for entry, record in zip(wanted, records, strict=True):
            if record is not None:  # else taken back since the listing
                # Of another term, it came after the listing: its ETag is not known, and it is read again next time.
                etag = entry.etag if record.term == entry.term else ""
                manifest.rows[entry.shard_id] = ManifestRow(record, etag)
    return manifest


def write_manifest(store: Store, place: OutputPlace, manifest: Manifest) -> None:
    """Replace the stored manifest."""
    rows = [_flat(row) for _, row in sorted(manifest.rows.items())]
    metadata = {"voxmill.format_version": str(FORMAT_VERSION), "voxmill.fingerprint": manifest.fingerprint}
    table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(metadata))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    store.put(place.manifest, sink.getvalue().to_pybytes())


def load_manifest(store: Store, place: OutputPlace, fingerprint: str) -> Manifest:
    """The stored manifest; an empty one when there is none, or when it is damaged, another job's or format's."""
    manifest = Manifest(fingerprint)
    try:
        content = store.read(place.manifest, bytes_max=MANIFEST_BYTES_MAX)
    except ObjectMissingError:
        return manifest
    try:
        # Not pq.read_table: threads of its scanner may let go of the buffer when the interpreter is already ending.
        table = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True).read(use_threads=False)
        metadata: Mapping[bytes, bytes] = table.schema.metadata or {}
        same_job = metadata.get(b"voxmill.fingerprint") == fingerprint.encode()
        same_version = metadata.get(b"voxmill.format_version") == str(FORMAT_VERSION).encode()
        if same_job and same_version and table.schema.equals(SCHEMA, check_metadata=False):
            manifest.rows = {row.record.shard_id: row for row in _rows(table)}
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        # Whatever a damaged file makes of itself: it is derived, the commits have it all, and it is written anew.
        manifest.rows = {}
    return manifest


def _flat(row: ManifestRow) -> dict[str, object]:
    record = row.record
    counts = record.counts.model_dump()
    for table in ("rejects", "carried"):
        counts[table] = [{"name": name, "count": count} for name, count in sorted(counts[table].items())]
    return {
        "shard_id": record.shard_id,
        "term": record.term,
        "input_uri": record.input.uri,
        "input_size_bytes": record.input.size_bytes,
        "input_etag": record.input.etag,
        "attempt": record.attempt,
        "objects": [item.model_dump() for item in record.objects],
        "num_halved_batches": record.num_halved_batches,
        "commit_etag": row.commit_etag,
        **counts,
    }


def _rows(table: pa.Table) -> Iterator[ManifestRow]:
    fingerprint = table.schema.metadata[b"voxmill.fingerprint"].decode()
    for flat in table.to_pylist():
        counts = {name: flat[name] for name in Counts.model_fields}
        for table_name in ("rejects", "carried"):
            counts[table_name] = {item["name"]: item["count"] for item in flat[table_name]}
        record = CommitRecord(
            shard_id=flat["shard_id"],
            term=flat["term"],
            fingerprint=fingerprint,
            input=InputRecord(uri=flat["input_uri"], size_bytes=flat["input_size_bytes"], etag=flat["input_etag"]),
            attempt=flat["attempt"],
            objects=tuple(ObjectRecord(**item) for item in flat["objects"]),
            counts=Counts(**counts),
            num_halved_batches=flat["num_halved_batches"],
        )
        yield ManifestRow(record, flat["commit_etag"])
