"""`voxmill verify`: every committed object read again and held against its record; nothing is believed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from jobs.verify_audio import AudioRules, check_audio
from jobs.verify_tokens import check_tokens
from pipeline.commit import find_commit, list_commits
from pipeline.errors import DataError, RefusedError
from pipeline.job import read_job
from pipeline.layout import OutputPlace, output_place, parse_commit_path, parse_token_path
from pipeline.manifest import load_manifest
from pipeline.records import CommitRecord, JobRecord
from pipeline.settings import RetryConfig, StorageConfig
from pipeline.storage import Store, Stores
from pipeline.token_reader import rules_of
from pipeline.types import Shard

READERS = 4
"""Shards checked at once."""

DERIVED = frozenset({"job.json", "manifest.parquet", "status.json", "report.html"})
LINES_MAX = 50

Check = Callable[[Store, OutputPlace, CommitRecord], Iterator[str]]


@dataclass
class VerifyReport:
    """What was checked and what is wrong. Orphans are no fault: they are data without a commit."""

    output: str
    num_shards: int = 0
    num_objects: int = 0
    num_bytes: int = 0
    num_rows: int = 0
    num_frames: int = 0
    faults: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether every committed shard is what its record says."""
        return not self.faults

    def lines(self) -> list[str]:
        """For people."""
        verdict = "sound" if self.sound else f"NOT SOUND: {len(self.faults)} faults"
        lines = [
            f"{verdict}: {self.num_shards} shards, {self.num_objects} objects, {self.num_bytes} bytes, "
            f"{self.num_rows} rows, {self.num_frames} frames read again in {self.output}"
        ]
        if not self.sound:
            lines.append(f"to mend shards: voxmill redo {self.output} SHARD_ID ..., then run the job again")
        for name, found in (("fault", self.faults), ("orphan", self.orphans), ("stray", self.strays)):
            lines += [f"{name}: {line}" for line in found[:LINES_MAX]]
            if len(found) > LINES_MAX:
                lines.append(f"{name}: and {len(found) - LINES_MAX} more; --json lists every one")
        return lines

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {"sound": self.sound, **{name: getattr(self, name) for name in self.__dataclass_fields__}}


def verify(output: str, storage: StorageConfig, retry: RetryConfig) -> VerifyReport:
    """Check all committed shards, and list what no commit names.

    Raises `RefusedError` when there is no job, `StoreDeniedError` or `StoreUnavailableError` when the
    place cannot be read.
    """
    place = output_place(output)
    store = Stores(storage, retry)(place.base)
    job = read_job(store, place)
    check = _check_of(job, place.job)
    report = VerifyReport(place.base)
    named: set[str] = set()
    terms = Counter(entry.shard_id for entry in list_commits(store, place))
    report.faults += [
        f"{shard_id}: has {count} commits, one is allowed" for shard_id, count in terms.items() if count > 1
    ]
    committed = sorted(terms)
    with ThreadPoolExecutor(READERS, thread_name_prefix="verify") as pool:
        for shard_id, record, found in pool.map(lambda i: _verify_shard(store, place, job, check, i), committed):
            report.num_shards += 1
            report.faults += [f"{shard_id}: {fault}" for fault in found]
            if record is not None:
                named.update(item.path for item in record.objects)
                report.num_objects += len(record.objects)
                report.num_bytes += sum(item.num_bytes for item in record.objects)
                report.num_rows += record.counts.num_rows
                report.num_frames += record.counts.num_frames
    report.faults += _check_manifest(store, place, job.fingerprint, terms.keys())
    _sort_unnamed(store, place, named, report)
    return report


def _check_manifest(store: Store, place: OutputPlace, fingerprint: str, committed: Set[str]) -> Iterator[str]:
    """A shard that the manifest has and the commits have not was committed once: its commit was lost."""
    for shard_id in sorted(load_manifest(store, place, fingerprint).rows.keys() - committed):
        yield f"{shard_id}: stands in the manifest, but its commit record is gone; run the job again"


def _check_of(job: JobRecord, uri: str) -> Check:
    """What reads the objects of a commit again, by what the job makes. Raises `RefusedError` on a changed record."""
    if job.makes_audio:
        audio_rules = AudioRules.of(job, uri)
        return lambda store, place, record: check_audio(store, place, record, audio_rules)
    token_rules = rules_of(job, uri)
    return lambda store, place, record: check_tokens(store, place, record, token_rules)


def _verify_shard(
    store: Store, place: OutputPlace, job: JobRecord, check: Check, shard_id: str
) -> tuple[str, CommitRecord | None, list[str]]:
    try:
        record = find_commit(store, place, shard_id)
    except (DataError, RefusedError) as error:
        return shard_id, None, [str(error)]
    if record is None:
        return shard_id, None, ["its commit record vanished while it was verified"]
    found = list(_check_record(job, shard_id, record))
    of_objects = list(_check_names(shard_id, record)) or list(check(store, place, record))
    return shard_id, record, found + of_objects


def _check_record(job: JobRecord, shard_id: str, record: CommitRecord) -> Iterator[str]:
    """What is wrong with what the record says of itself."""
    if record.shard_id != shard_id:
        yield f"its commit record is of shard {record.shard_id}"
    shard = Shard(record.input.uri, record.input.size_bytes, record.input.etag)
    if shard.shard_id != shard_id:
        yield f"its commit record is of input {record.input.uri}, whose shard id is {shard.shard_id}"
    if record.fingerprint != job.fingerprint:
        yield f"its commit record has fingerprint {record.fingerprint[:12]}, the job {job.fingerprint[:12]}"


def _check_names(shard_id: str, record: CommitRecord) -> Iterator[str]:
    """What is wrong with the names of its objects, which are not looked at then."""
    if len({item.path for item in record.objects}) != len(record.objects):
        yield "its commit record names an object twice"
    for item in record.objects:
        if parse_token_path(item.path) != (shard_id, record.attempt):
            yield f"{item.path}: is not an object of attempt {record.attempt}"


def _sort_unnamed(store: Store, place: OutputPlace, named: Iterable[str], report: VerifyReport) -> None:
    """Objects that no commit names: orphans by their name, else strays."""
    names = set(named)
    for info in store.list(place.base):
        path = place.path(info.uri)
        if path in names or path in DERIVED or parse_commit_path(path) or path.startswith("failures/"):
            continue
        (report.orphans if parse_token_path(path) else report.strays).append(path)
