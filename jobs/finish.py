"""The end of a run: look at the place again, fold the manifest, and tell the truth about what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from jobs.display import rejected
from jobs.prepare import OpenJob
from jobs.terminal import duration, hours
from jobs.view import RunView
from pipeline.codebooks import Savings
from pipeline.commit import find_commit
from pipeline.layout import TOKEN_FOLDERS
from pipeline.manifest import Manifest, fold_commits, write_manifest
from pipeline.orphans import delete_unnamed, unnamed_objects
from pipeline.records import Counts, State
from pipeline.types import Shard

LINES_MAX = 20
"""A report names so many shards of each sort; its JSON names all."""


@dataclass(frozen=True)
class RunReport:
    """What came of a run; `state` is what the store holds, not what the driver believes."""

    state: State
    output: str
    num_shards: int
    num_committed: int
    num_committed_now: int
    failed: Mapping[str, str]
    missing: tuple[str, ...]
    unfinished: tuple[str, ...]
    orphans: tuple[str, ...]
    num_others: int
    carried_nowhere: tuple[str, ...]
    counts: Counts
    savings: Savings | None
    unsafe_store: bool
    wall_s: float
    audio_s_now: float

    @property
    def exit_code(self) -> int:
        """0 complete, 1 incomplete or failed shards, 3 interrupted and resumable."""
        return {"complete": 0, "incomplete": 1, "interrupted": 3, "running": 1}[self.state]

    def lines(self) -> list[str]:
        """For people."""
        counts = self.counts
        lines = [
            f"{self.state}: {self.num_committed} of {self.num_shards} shards committed "
            f"({self.num_committed_now} by this run) in {self.output}",
            f"{counts.num_rows} rows, {counts.num_frames} frames, {hours(counts.audio_s)} of audio; "
            + rejected(counts)
            + (f" (why, one by one: {self.output}/rejects)" if counts.num_rejected else ""),
        ]
        if self.savings is not None:
            lines.append(f"acoustic codebooks: {self.savings.line()}")
        if self.num_others:
            lines.append(f"{self.num_others} shards of other inputs are committed in the same place")
        lines += [
            f"WARNING: no sample had a sidecar {suffix!r} to carry; is it spelled as in the shards?"
            for suffix in self.carried_nowhere
        ]
        if self.num_committed_now:
            rate = self.audio_s_now / self.wall_s
            lines.append(
                f"this run: {hours(self.audio_s_now)} of audio in {duration(self.wall_s)}, {rate:.1f}x real time "
                "with the start of the replicas"
            )
        if self.unsafe_store:
            lines.append("WARNING: unsafe store: put-if-absent is not enforced; two drivers may both have committed")
        lines += [
            f"orphan: {path}: of a shard without a commit, which a plain glob would take for tokens"
            for path in self.orphans[:LINES_MAX]
        ]
        lines += [f"missing: {uri}: no such object; put it there and run again" for uri in self.missing[:LINES_MAX]]
        lines += [f"failed: {uri}: {why}" for uri, why in list(self.failed.items())[:LINES_MAX]]
        lines += [f"not done: {uri}" for uri in self.unfinished[:LINES_MAX]]
        left = len(self.missing) + len(self.failed) + len(self.unfinished)
        if left > LINES_MAX:
            lines.append(f"{left} shards in all are not committed; --json lists every one")
        if self.state == "interrupted":
            lines.append("the same command again does the rest")
        return lines

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "state": self.state,
            "output": self.output,
            "num_shards": self.num_shards,
            "num_committed": self.num_committed,
            "num_committed_now": self.num_committed_now,
            "failed": dict(self.failed),
            "missing": list(self.missing),
            "unfinished": list(self.unfinished),
            "orphans": list(self.orphans),
            "num_others": self.num_others,
            "carried_nowhere": list(self.carried_nowhere),
            "counts": self.counts.model_dump(),
            "saved_acoustic_bits": None if self.savings is None else round(self.savings.bits),
            "unsafe_store": self.unsafe_store,
            "wall_s": round(self.wall_s, 3),
            "audio_s_now": round(self.audio_s_now, 3),
        }


def finish(
    job: OpenJob, failed_now: Mapping[Shard, str], *, interrupted: bool, view: RunView, wall_s: float
) -> RunReport:
    """Fold the commits once more, write the manifest, and clean up when all is committed."""
    manifest = fold_commits(job.store, job.place, job.setup.fingerprint, known=job.manifest)
    write_manifest(job.store, job.place, manifest)
    failed = {shard.uri: why for shard, why in failed_now.items() if shard.shard_id not in manifest.rows}
    unfinished = []
    etags = manifest.rows.input_etags()
    for shard in job.listing.shards:
        etag = etags.get(shard.shard_id)
        before = job.failed_before.get(shard.shard_id)
        if etag is not None and etag != shard.etag:
            failed[shard.uri] = "its commit is of another version of the object; run again with --redo-changed"
        elif etag is None and before is not None:
            failed[shard.uri] = f"given up by an earlier run (--retry-failed takes it again): {before.message}"
        elif etag is None and shard.uri not in failed:
            unfinished.append(shard.uri)
    # A named input that is gone needs not be there any more once it is committed.
    named = [Shard(uri, 0, "") for uri in job.listing.missing]
    missing = tuple(shard.uri for shard in named if shard.shard_id not in manifest.rows)
    complete = not (failed or unfinished or missing)
    orphans = _sweep(job, manifest) if complete else ()
    asked = [shard.shard_id for shard in (*job.listing.shards, *named)]
    num_committed = sum(shard_id in manifest.rows for shard_id in asked)
    counts = manifest.rows.sum_counts(asked)
    return RunReport(
        state="complete" if complete else "interrupted" if interrupted else "incomplete",
        output=job.place.base,
        num_shards=job.num_shards,
        num_committed=num_committed,
        num_committed_now=view.num_ours,
        failed=failed,
        missing=missing,
        unfinished=tuple(unfinished),
        orphans=orphans,
        num_others=len(manifest.rows) - num_committed,
        carried_nowhere=tuple(s for s in job.setup.carry if counts.num_rows and not counts.carried.get(s)),
        counts=counts,
        savings=Savings.of(counts.num_frames_by_codebooks, job.setup.chosen_from),
        unsafe_store=job.unsafe_store,
        wall_s=wall_s,
        audio_s_now=view.audio_s_committed,
    )


def _sweep(job: OpenJob, manifest: Manifest) -> tuple[str, ...]:
    """Delete token objects that the commits of their shards do not name; returns those of shards without a commit."""
    orphans: list[str] = []
    listed = chain.from_iterable(job.store.list(job.place.uri(folder)) for folder in TOKEN_FOLDERS)
    for shard_id, found in unnamed_objects(listed, job.place, manifest).items():
        standing = find_commit(job.store, job.place, shard_id)
        if standing is None:  # another driver may be about to commit them
            orphans += (job.place.path(info.uri) for info in found)
        else:
            delete_unnamed(job.store, job.place, found, standing)
    return tuple(orphans)
