"""What a job has committed, read back: rows of tokens by shard, committed ones alone, each object held to its record.

Nothing is held open between calls, and nothing is written to the place:

    for row in TokenReader.open("s3://bucket/tokens").rows():
        row.key, row.num_frames, row.semantic, row.acoustic, row.segments, row.sidecars
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.commit import find_commit
from pipeline.errors import DataError, ObjectChangedError, ObjectMissingError, OtherJobError, RefusedError
from pipeline.fetch import fetch_object
from pipeline.fingerprint import fingerprint
from pipeline.job import read_job
from pipeline.layout import OutputPlace, output_place
from pipeline.manifest import Manifest, fold_commits
from pipeline.records import CommitRecord, JobRecord, ObjectRecord
from pipeline.settings import RetryConfig, StorageConfig
from pipeline.spool import Spool
from pipeline.storage import Store, Stores
from pipeline.token_rows import READ_ERRORS, TokenRules, read_rows, row_faults
from pipeline.types import Shard, TokenRow


@dataclass(frozen=True)
class TokenReader:
    """The token shards of one job; safe from several threads."""

    store: Store
    place: OutputPlace
    job: JobRecord
    rules: TokenRules

    @classmethod
    def open(
        cls,
        uri: str,
        storage: StorageConfig | None = None,
        retry: RetryConfig | None = None,
        *,
        store: Store | None = None,
    ) -> TokenReader:
        """The reader of an output place of `voxmill run`, one request. Raises `RefusedError` when it is none."""
        place = output_place(uri)
        store = store or Stores(storage or StorageConfig(), retry or RetryConfig())(place.base)
        job = read_job(store, place)
        return cls(store, place, job, rules_of(job, place.job))

    def manifest(self) -> Manifest:
        """What is committed now: one listing, and a read of each commit that the stored manifest lacks.

        Raises `OtherJobError` when commits of another job stand in the place.
        """
        manifest = fold_commits(self.store, self.place, self.job.fingerprint)
        strange = manifest.rows.strange()
        if strange:
            raise OtherJobError(
                f"{self.place.base}: {len(strange)} commit records are of another job, such as {strange[0]}"
            )
        return manifest

    def shards(self) -> list[Shard]:
        """The committed token shards, in the order of their ids, as inputs of another job.

        The URI names the job and the shard and not the place, which may be moved or reached by another path: it is then
        still the same shard. The size is that of the token objects together; the ETag changes when, and only when,
        their content does.
        """
        rows = self.manifest().rows
        return [self.shard_of(rows[shard_id].record) for shard_id in sorted(rows)]

    def shard_of(self, record: CommitRecord) -> Shard:
        """One committed token shard as an input."""
        uri = f"tokens:{self.job.fingerprint}/{record.shard_id}"
        return Shard(uri, sum(item.num_bytes for item in _tokens(record)), content_etag(record))

    def rows(self) -> Iterator[TokenRow]:
        """Every committed row, shard by shard. Raises as `read`."""
        for shard in self.shards():
            yield from self.read(shard)

    def read(self, shard: Shard) -> Iterator[TokenRow]:
        """The rows of one shard of `shards()`, in order. Its objects are copied to local temporary files.

        Raises `ObjectChangedError` when its tokens are others by now, `DataError`, naming the object, when one is not
        what its commit says or a row is not sound, and the store's own errors.
        """
        shard_id = shard.uri.rpartition("/")[2]
        record = find_commit(self.store, self.place, shard_id)
        if record is None:
            raise ObjectMissingError(f"{shard.uri}: no commit stands there any more; run the job of the tokens again")
        if content_etag(record) != shard.etag:
            raise ObjectChangedError(f"{shard.uri}: its tokens are others than those that were listed")
        yield from self.read_commit(record)

    def read_commit(self, record: CommitRecord) -> Iterator[TokenRow]:
        """The rows of a commit. Raises as `read`."""
        with Spool() as spool:
            files = {}
            for item in _tokens(record):
                file = spool.file(item.path.partition("/")[0])
                fault = fetch_object(self.store, self.place.uri(item.path), item, file)
                if fault:
                    raise DataError(f"{self.place.uri(item.path)}: {fault}; {self._remedy(record)}")
                files[item.path.partition("/")[0]] = file
            try:
                for row in read_rows(files, self.rules):
                    for fault in row_faults(row, self.rules):
                        raise DataError(f"{self._name(record)}: key {row.key!r}: {fault}; {self._remedy(record)}")
                    yield row
            except READ_ERRORS as error:
                raise DataError(
                    f"{self._name(record)} cannot be read as token shard: {type(error).__name__}: {error}; "
                    f"{self._remedy(record)}"
                ) from error

    def _name(self, record: CommitRecord) -> str:
        return ", ".join(self.place.uri(item.path) for item in _tokens(record))

    def _remedy(self, record: CommitRecord) -> str:
        return (
            f"to mend it: voxmill redo {self.place.base} {record.shard_id}, then run its job again; a decode job that "
            "gave it up takes it with --retry-failed"
        )


def content_etag(record: CommitRecord) -> str:
    """A hash (hex) of a shard's tokens alone: the same when they were made anew and came out the same."""
    lines = sorted(f"{item.path.partition('/')[0]} {item.sha256}\n" for item in _tokens(record))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def rules_of(job: JobRecord, uri: str) -> TokenRules:
    """From the parts of `job.json` that its fingerprint covers.

    Raises `RefusedError` when it does not, or when the job makes no tokens.
    """
    parts = job.parts
    if fingerprint(parts) != job.fingerprint:
        raise RefusedError(f"{uri} was changed: its fingerprint is not that of its parts; put the right one back")
    if job.makes_audio:
        raise RefusedError(f"{uri} is of a job that made audio; give the output place of a `voxmill run`")
    return TokenRules(
        fingerprint=job.fingerprint,
        streams=tuple(parts["streams"]),
        carry=tuple(parts["carry"]),
        sample_rate_hz=parts["codec.sample_rate_hz"],
        frame_size=parts["codec.frame_size"],
        semantic_cardinality=parts["codec.semantic_cardinality"],
        acoustic_cardinalities=tuple(parts["codec.acoustic_cardinalities"][: parts["num_acoustic_codebooks"]]),
        adaptive="acoustic_residual_max" in parts,
    )


def _tokens(record: CommitRecord) -> list[ObjectRecord]:
    return [item for item in record.objects if not item.path.startswith("rejects/")]
