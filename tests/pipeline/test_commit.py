"""The commit: one attempt counts, the loser cleans up after itself alone, an unknown outcome deletes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.commit import (
    FENCE,
    Standing,
    close_term,
    commit,
    find_commit,
    find_standing,
    list_commits,
    put_objects,
    take_back,
)
from pipeline.errors import AttemptFencedError, OtherJobError, RefusedError, StoreUnavailableError
from pipeline.layout import OutputPlace, parse_commit_path, parse_token_path, token_path
from pipeline.manifest import fold_commits, write_manifest
from pipeline.records import CommitRecord, Counts, InputRecord
from pipeline.settings import RetryConfig, StorageConfig
from pipeline.spool import Spool
from pipeline.storage import Store, open_store

OURS, THEIRS = "a" * 32, "b" * 32
SHARD_ID = "shard-000-0123abcd"


@pytest.fixture
def place(tmp_path: Path) -> OutputPlace:
    return OutputPlace(str(tmp_path / "out"))


@pytest.fixture
def store() -> Store:
    return open_store("/", StorageConfig(), RetryConfig(attempts_max=1))


class Faulty:
    """A store in whose put-if-absent something goes wrong, as scripted."""

    def __init__(self, store: Store, *, puts: bool, raises: bool) -> None:
        self._store, self._puts, self._raises = store, puts, raises

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put_if_absent(self, uri: str, data: bytes) -> Any:
        written = self._store.put_if_absent(uri, data) if self._puts else None
        if self._raises:
            raise StoreUnavailableError("the reply was lost")
        return written


def attempt(store: Store, place: OutputPlace, name: str, shard_id: str = SHARD_ID) -> CommitRecord:
    """An attempt that has put its objects and not yet committed."""
    with Spool() as spool:
        spool.file("tokens").write(name.encode())
        objects = put_objects(store, place, shard_id, name, spool.finished())
    counts = Counts(num_samples=1, num_rows=1, num_rejected=0, num_frames=2, num_audio_samples=1920, audio_s=0.12)
    record = InputRecord(uri="/in/shard-000.tar", size_bytes=5, etag="e")
    return CommitRecord(shard_id=shard_id, fingerprint="f", input=record, attempt=name, objects=objects, counts=counts)


def tokens(place: OutputPlace) -> list[str]:
    return sorted(path.name.split(".")[1] for path in Path(place.uri("tokens")).glob("*"))


def test_the_first_counts_and_the_second_deletes_its_own_objects_alone(store, place):
    first, second = attempt(store, place, OURS), attempt(store, place, THEIRS)
    won, lost = commit(store, place, first), commit(store, place, second)
    assert (won.ours, won.record.attempt) == (True, OURS)
    assert (lost.ours, lost.record.attempt) == (False, OURS)
    assert tokens(place) == [OURS]


def test_a_lost_reply_is_settled_by_reading_back(store, place):
    record = attempt(store, place, OURS)
    assert commit(Faulty(store, puts=True, raises=True), place, record).ours
    assert tokens(place) == [OURS]


def test_exists_of_our_own_record_means_success(store, place):
    record = attempt(store, place, OURS)
    store.put_if_absent(place.commit(SHARD_ID), record.to_bytes())
    assert commit(store, place, record).ours
    assert tokens(place) == [OURS]


@pytest.mark.parametrize("raises", [True, False])
def test_an_unknown_outcome_is_an_error_and_deletes_nothing(store, place, raises):
    record = attempt(store, place, OURS)
    with pytest.raises(StoreUnavailableError):
        commit(Faulty(store, puts=False, raises=raises), place, record)
    assert tokens(place) == [OURS]
    assert find_commit(store, place, SHARD_ID) is None


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"format_version": 1}', b"\xff"])
def test_a_record_that_is_none_is_refused_by_name(store, place, content):
    store.put(place.commit(SHARD_ID), content)
    with pytest.raises(RefusedError, match=SHARD_ID):
        find_commit(store, place, SHARD_ID)


def test_a_record_of_another_format_is_refused(store, place):
    record = attempt(store, place, OURS).model_copy(update={"format_version": 2})
    store.put(place.commit(SHARD_ID), record.to_bytes())
    with pytest.raises(OtherJobError, match="format version 2"):
        find_commit(store, place, SHARD_ID)


class Counting:
    """A store that counts whole reads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.reads: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, uri: str, *, bytes_max: int) -> bytes:
        self.reads.append(uri.rsplit("/", 1)[1])
        return self._store.read(uri, bytes_max=bytes_max)


def test_the_manifest_saves_reading_commits_and_notices_changed_ones(store, place):
    ids = [f"s{n}-0000000{n}" for n in range(5)]
    for shard_id in ids[:3]:
        commit(store, place, attempt(store, place, OURS, shard_id))
    write_manifest(store, place, fold_commits(store, place, "f"))
    commit(store, place, attempt(store, place, OURS, ids[3]))
    replaced = attempt(store, place, THEIRS, ids[0])
    store.delete(place.commit(ids[0]))
    commit(store, place, replaced)
    store.delete(place.commit(ids[1]))

    counting = Counting(store)
    manifest = fold_commits(counting, place, "f")
    assert sorted(counting.reads) == sorted([f"{ids[0]}.json", f"{ids[3]}.json", "manifest.parquet"])
    assert {i: row.record.attempt for i, row in manifest.rows.items()} == {
        ids[0]: THEIRS, ids[2]: OURS, ids[3]: OURS,
    }  # fmt: skip
    write_manifest(store, place, manifest)
    again = fold_commits(store, place, "f")
    assert {i: row.record.objects for i, row in again.rows.items()} == {
        i: row.record.objects for i, row in manifest.rows.items()
    }


def test_a_manifest_of_another_job_or_a_broken_one_is_not_believed(store, place):
    commit(store, place, attempt(store, place, OURS))
    manifest = fold_commits(store, place, "other")
    write_manifest(store, place, manifest)
    assert SHARD_ID in fold_commits(store, place, "f").rows
    store.put(place.manifest, b"PAR1 not at all")
    assert SHARD_ID in fold_commits(store, place, "f").rows


def test_names_are_read_back_and_others_are_not_ours():
    for folder in ("tokens", "semantic", "acoustic", "rejects"):
        assert parse_token_path(token_path(folder, SHARD_ID, OURS)) == (SHARD_ID, OURS)
    for path in ("tokens/x.parquet", f"tokens/{SHARD_ID}.{OURS}.tar", f"other/{SHARD_ID}.{OURS}.parquet", "tokens/"):
        assert parse_token_path(path) is None
    for term in (0, 1, 12):
        assert parse_commit_path(OutputPlace("/out").commit(SHARD_ID, term).removeprefix("/out/")) == (SHARD_ID, term)
    for name in ("readme", f"{SHARD_ID}.0", f"{SHARD_ID}.01", f"{SHARD_ID}.x"):
        assert parse_commit_path(f"commits/{name}.json") is None


def test_a_fence_ends_the_attempts_before_it_and_no_other(store, place):
    sleeper = attempt(store, place, OURS)
    assert close_term(store, place, SHARD_ID) is None
    assert find_standing(store, place, SHARD_ID) == Standing(1, None)
    with pytest.raises(AttemptFencedError, match=r"fenced off.*tried again"):
        commit(store, place, sleeper)
    assert tokens(place) == [], "the fence proves the loss"

    after = attempt(store, place, THEIRS).model_copy(update={"term": 1})
    assert commit(store, place, after).ours
    assert find_standing(store, place, SHARD_ID).record == after
    with pytest.raises(AttemptFencedError):
        commit(store, place, sleeper)
    assert tokens(place) == [THEIRS]


def test_a_commit_that_stands_needs_no_fence(store, place):
    record = commit(store, place, attempt(store, place, OURS)).record
    assert close_term(store, place, SHARD_ID) == record
    assert [path.name for path in Path(place.commits).iterdir()] == [f"{SHARD_ID}.json"]


@pytest.mark.parametrize("winner", ["commit", "fence"])
def test_who_loses_the_race_to_close_a_term_takes_what_won(store, place, winner):
    record = attempt(store, place, OURS)

    class Raced(Faulty):
        def put_if_absent(self, uri: str, data: bytes) -> Any:
            self._store.put_if_absent(uri, record.to_bytes() if winner == "commit" else FENCE)
            return self._store.put_if_absent(uri, data)

    found = close_term(Raced(store, puts=True, raises=False), place, SHARD_ID)
    assert found == (record if winner == "commit" else None)


def test_a_fence_of_unknown_outcome_is_an_error(store, place):
    with pytest.raises(StoreUnavailableError):
        close_term(Faulty(store, puts=False, raises=True), place, SHARD_ID)
    with pytest.raises(StoreUnavailableError, match="does not show it"):
        close_term(Faulty(store, puts=False, raises=False), place, SHARD_ID)


def test_a_commit_that_is_taken_back_leaves_a_fence(store, place):
    first = attempt(store, place, OURS)
    commit(store, place, first)
    take_back(store, place, find_standing(store, place, SHARD_ID))
    assert list(list_commits(store, place)) == []
    with pytest.raises(AttemptFencedError):
        commit(store, place, first)
    again = attempt(store, place, THEIRS).model_copy(update={"term": 1})
    commit(store, place, again)
    (entry,) = list_commits(store, place)
    assert (entry.shard_id, entry.term) == (SHARD_ID, 1)
    manifest = fold_commits(store, place, "f")
    assert manifest.rows[SHARD_ID].record == again
    write_manifest(store, place, manifest)
    counting = Counting(store)
    assert fold_commits(counting, place, "f").rows[SHARD_ID].record.term == 1
    assert counting.reads == ["manifest.parquet"]


def test_a_fence_that_somebody_removed_is_missed_before_anything_is_believed(store, place):
    close_term(store, place, SHARD_ID)
    commit(store, place, attempt(store, place, OURS).model_copy(update={"term": 1}))
    write_manifest(store, place, fold_commits(store, place, "f"))
    store.delete(place.commit(SHARD_ID))
    with pytest.raises(RefusedError, match=rf"{SHARD_ID}\.json: put it back"):
        fold_commits(store, place, "f")
    store.put(place.commit(SHARD_ID), FENCE)
    assert SHARD_ID in fold_commits(store, place, "f").rows


def test_fences_without_end_are_refused(store, place, monkeypatch):
    monkeypatch.setattr("pipeline.commit.TERMS_MAX", 3)
    for _ in range(3):
        close_term(store, place, SHARD_ID)
    with pytest.raises(RefusedError, match="3 fences"):
        close_term(store, place, SHARD_ID)


def test_no_record_is_as_small_as_a_fence(store, place):
    record = attempt(store, place, OURS, "-00000000")
    smallest = record.model_copy(
        update={"fingerprint": "", "attempt": "", "objects": (), "input": InputRecord(uri="", size_bytes=0, etag="")}
    )
    assert len(smallest.to_bytes()) > len(FENCE)
