"""The manifest: one row a committed shard, folded from the commit records; derived, and rebuilt at will."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commit import CommitEntry, find_commit, list_commits
from pipeline.errors import ObjectMissingError
from pipeline.fingerprint import FORMAT_VERSION
from pipeline.layout import OutputPlace
from pipeline.manifest_rows import ManifestRow, Rows
from pipeline.records import CommitRecord
from pipeline.storage import Store

MANIFEST_BYTES_MAX = 8 << 30
READERS = 16
"""Commit records fetched at once."""

_READ_AHEAD = 4096
"""Commit records asked for and not yet taken; of a million at once the requests alone would fill a GB."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Committed shards of a job, by shard id."""

    fingerprint: str
    rows: Rows


def fold_commits(store: Store, place: OutputPlace, fingerprint: str, *, known: Manifest | None = None) -> Manifest:
    """The manifest as the commits say now: one listing, and a read of each commit that is not known.

    What is `known` is by default the stored manifest's; a row counts only while its commit's ETag stands.
    """
    known = known if known is not None else load_manifest(store, place, fingerprint)
    commits = known.rows.commits()
    standing: list[str] = []
    wanted: list[CommitEntry] = []
    for entry in list_commits(store, place):
        if commits.get(entry.shard_id) == (entry.term, entry.etag):
            standing.append(entry.shard_id)
        else:
            wanted.append(entry)
    del commits
    rows = known.rows.only(standing)
    for entry, record in _read_commits(store, place, wanted):
        if record is not None:  # else taken back since the listing
            # Of another term, it came after the listing: its ETag is not known, and it is read again next time.
            etag = entry.etag if record.term == entry.term else ""
            rows[entry.shard_id] = ManifestRow(record, etag)
    return Manifest(fingerprint, rows)


def _read_commits(
    store: Store, place: OutputPlace, wanted: Sequence[CommitEntry]
) -> Iterator[tuple[CommitEntry, CommitRecord | None]]:
    with ThreadPoolExecutor(READERS, thread_name_prefix="commits") as pool:
        for start in range(0, len(wanted), _READ_AHEAD):
            part = wanted[start : start + _READ_AHEAD]
            records = pool.map(lambda entry: find_commit(store, place, entry.shard_id), part)
            yield from zip(part, records, strict=True)


def write_manifest(store: Store, place: OutputPlace, manifest: Manifest) -> None:
    """Replace the stored manifest."""
    metadata = {"voxmill.format_version": str(FORMAT_VERSION), "voxmill.fingerprint": manifest.fingerprint}
    sink = pa.BufferOutputStream()
    table = manifest.rows.in_order().replace_schema_metadata(metadata)
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    store.put(place.manifest, sink.getvalue().to_pybytes())


def load_manifest(store: Store, place: OutputPlace, fingerprint: str) -> Manifest:
    """The stored manifest; an empty one when there is none, or when it is damaged, another job's or format's."""
    try:
        content = store.read(place.manifest, bytes_max=MANIFEST_BYTES_MAX)
    except ObjectMissingError:
        return Manifest(fingerprint, Rows(fingerprint))
    try:
        # Not pq.read_table: threads of its scanner may let go of the buffer when the interpreter is already ending.
        table = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True).read(use_threads=False)
        metadata: Mapping[bytes, bytes] = table.schema.metadata or {}
        same_job = metadata.get(b"voxmill.fingerprint") == fingerprint.encode()
        same_version = metadata.get(b"voxmill.format_version") == str(FORMAT_VERSION).encode()
        return Manifest(fingerprint, Rows(fingerprint, table if same_job and same_version else None))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        # Whatever a damaged file makes of itself: it is derived, the commits have it all, and it is written anew.
        return Manifest(fingerprint, Rows(fingerprint))
