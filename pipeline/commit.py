"""Put an attempt's objects, then make it count by one put-if-absent of one small record.

Whoever loses that race has written nothing that counts. A lost reply is settled by reading the record back;
while the outcome is unknown nothing is deleted.

A shard has *terms* 0, 1, 2, ... and each term has one record, put only if absent: a commit, or a *fence*. An attempt
commits in the first term that had no record when it began. So a fence ends all attempts that have begun before it,
however long they sleep: what they have put may then be deleted, though no commit stands. A fence never goes away.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pipeline.errors import AttemptFencedError, ObjectMissingError, RefusedError, StoreUnavailableError
from pipeline.layout import OutputPlace, parse_commit_path, token_path
from pipeline.records import RECORD_BYTES_MAX, CommitRecord, ObjectRecord
from pipeline.spool import SpooledFile
from pipeline.storage import Store

FENCE = b'{"format_version": 1, "fence": true}\n'
"""Known by its size alone in a listing: no commit record is so small."""

TERMS_MAX = 1000
"""Each is a fence that `voxmill gc` or `--redo-changed` put; more is no life of a shard but a fault."""


@dataclass(frozen=True, slots=True)
class Committed:
    """The record that stands, and whether it is this attempt's; `etag` is empty where a reply was lost."""

    record: CommitRecord
    ours: bool
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """The commit of a shard and its term; without one, the term in which an attempt that begins now may commit."""

    term: int
    record: CommitRecord | None


@dataclass(frozen=True, slots=True)
class CommitEntry:
    """A commit record as a listing shows it."""

    shard_id: str
    term: int
    etag: str


def find_standing(store: Store, place: OutputPlace, shard_id: str) -> Standing:
    """Go over the fences of a shard. Raises `RefusedError` on a record that is none of ours, or too many fences."""
    for term in range(TERMS_MAX):
        content = _read_term(store, place, shard_id, term)
        if content is None:
            return Standing(term, None)
        if content != FENCE:
            return Standing(term, CommitRecord.from_bytes(content, place.commit(shard_id, term)))
    raise RefusedError(
        f"{place.commit(shard_id)}: {TERMS_MAX} fences stand before a commit; remove the shard's records in commits/ "
        "while no run is alive"
    )


def find_commit(store: Store, place: OutputPlace, shard_id: str) -> CommitRecord | None:
    """The commit record of a shard, if there is one."""
    return find_standing(store, place, shard_id).record


def list_commits(store: Store, place: OutputPlace) -> Iterator[CommitEntry]:
    """Every commit by its name alone; fences are left out.

    Raises `RefusedError`, at the end, when a commit stands behind a term without a record: somebody removed a fence,
    and a second commit could stand before it.
    """
    later: list[tuple[str, int]] = []
    fences: set[tuple[str, int]] = set()
    for info in store.list(place.commits):
        owner = parse_commit_path(place.path(info.uri))
        if owner is None:
            continue
        if info.size_bytes == len(FENCE):
            fences.add(owner)
            continue
        if owner[1]:
            later.append(owner)
        yield CommitEntry(*owner, info.etag)
    gaps = [(shard_id, term) for shard_id, last in later for term in range(last) if (shard_id, term) not in fences]
    gaps = [gap for gap in gaps if _read_term(store, place, *gap) is None]  # a listing of a folder may miss new names
    if gaps:
        raise RefusedError(
            f"{len(gaps)} fences before commits were removed, the first {place.commit(*gaps[0])}: put it back (its "
            f"content is {FENCE.decode().strip()!r} and a line end) while no run is alive; to do shards anew use "
            "voxmill redo"
        )


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
    """Make an attempt count in its term, or learn which one does.

    When another record stands there, that proves our loss: our own objects, and only they, are deleted. Raises
    `AttemptFencedError` when it is a fence, `StoreUnavailableError` when the outcome stays unknown; then nothing is
    deleted.
    """
    uri = place.commit(record.shard_id, record.term)
    try:
        written = store.put_if_absent(uri, record.to_bytes())
        if written is not None:
            return Committed(record, ours=True, etag=written.etag)
        unknown = None
    except StoreUnavailableError as error:
        unknown = error
    content = _read_term(store, place, record.shard_id, record.term)
    if content is None:
        raise unknown or StoreUnavailableError(
            f"the store refused {uri} as existing but does not show it; the shard is tried again"
        )
    standing = None if content == FENCE else CommitRecord.from_bytes(content, uri)
    if standing is not None and standing.attempt == record.attempt:
        return Committed(standing, ours=True)
    for item in record.objects:
        store.delete(place.uri(item.path))
    if standing is None:
        raise AttemptFencedError(
            f"{uri}: this attempt was fenced off while it ran (voxmill gc, --redo-changed); the shard is tried again"
        )
    return Committed(standing, ours=False)


def close_term(store: Store, place: OutputPlace, shard_id: str) -> CommitRecord | None:
    """End every attempt that has begun so far by a fence, unless a commit stands or wins the race: then return that.

    Objects that were listed before this call and are not of the commit returned can never be committed. Raises
    `StoreUnavailableError` when it is unknown whether the fence stands.
    """
    standing = find_standing(store, place, shard_id)
    if standing.record is not None:
        return standing.record
    uri = place.commit(shard_id, standing.term)
    if store.put_if_absent(uri, FENCE) is not None:
        return None
    content = _read_term(store, place, shard_id, standing.term)
    if content is None:
        raise StoreUnavailableError(f"the store refused {uri} as existing but does not show it; try again")
    return None if content == FENCE else CommitRecord.from_bytes(content, uri)


def take_back(store: Store, place: OutputPlace, standing: Standing) -> None:
    """Turn a commit into a fence: the shard is to be done anew, and no attempt of before can commit again."""
    assert standing.record is not None
    store.put(place.commit(standing.record.shard_id, standing.term), FENCE)


def _read_term(store: Store, place: OutputPlace, shard_id: str, term: int) -> bytes | None:
    try:
        return store.read(place.commit(shard_id, term), bytes_max=RECORD_BYTES_MAX)
    except ObjectMissingError:
        return None
