"""Put an attempt's objects, then make it count by one put-if-absent of one small record.

Whoever loses that race has written nothing that counts. A lost reply is settled by reading the record back;
while the outcome is unknown nothing is deleted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.errors import ObjectMissingError, StoreUnavailableError
from pipeline.layout import OutputPlace, token_path
from pipeline.records import RECORD_BYTES_MAX, CommitRecord, ObjectRecord
from pipeline.storage import Store
from pipeline.writer import SpooledFile


@dataclass(frozen=True, slots=True)
class Committed:
    """The record that stands, and whether it is this attempt's; `etag` is empty where a reply was lost."""

    record: CommitRecord
    ours: bool
    etag: str = ""


def find_commit(store: Store, place: OutputPlace, shard_id: str) -> CommitRecord | None:
    """The commit record of a shard, if there is one."""
    uri = place.commit(shard_id)
    try:
        return CommitRecord.from_bytes(store.read(uri, bytes_max=RECORD_BYTES_MAX), uri)
    except ObjectMissingError:
        return None


def put_objects(
    store: Store, place: OutputPlace, shard_id: str, attempt: str, files: Iterable[SpooledFile]
) -> tuple[ObjectRecord, ...]:
    """Put the spooled files under names that no other attempt has; the store checks size and checksum."""
    objects = []
    for file in files:
        path = token_path(file.folder, shard_id, attempt)
        store.put_file(place.uri(path), file.path)
        objects.append(ObjectRecord(path=path, num_bytes=file.num_bytes, sha256=file.sha256))
    return tuple(objects)


def commit(store: Store, place: OutputPlace, record: CommitRecord) -> Committed:
    """Make an attempt count, or learn which one does.

    When another attempt's record stands, that proves our loss: our own objects, and only they, are deleted.
    Raises `StoreUnavailableError` when the outcome stays unknown; then nothing is deleted.
    """
    try:
        written = store.put_if_absent(place.commit(record.shard_id), record.to_bytes())
        if written is not None:
            return Committed(record, ours=True, etag=written.etag)
        unknown = None
    except StoreUnavailableError as error:
        unknown = error
    standing = find_commit(store, place, record.shard_id)
    if standing is None:
        raise unknown or StoreUnavailableError(
            f"the store refused {place.commit(record.shard_id)} as existing but does not show it; "
            "the shard is tried again"
        )
    if standing.attempt == record.attempt:
        return Committed(standing, ours=True)
    for item in record.objects:
        store.delete(place.uri(item.path))
    return Committed(standing, ours=False)
