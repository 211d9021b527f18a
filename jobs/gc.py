"""`voxmill gc`: what no commit names, and never will, is removed; safe beside runs on the same place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.commit import close_term, find_commit
from pipeline.errors import RefusedError, UnsafeStoreError
from pipeline.job import read_job
from pipeline.layout import OutputPlace, output_place
from pipeline.manifest import fold_commits
from pipeline.orphans import delete_unnamed, unnamed_objects
from pipeline.records import CommitRecord
from pipeline.settings import RetryConfig, StorageConfig
from pipeline.storage import PROBE_PREFIX, Store, Stores, probe_put_if_absent
from pipeline.types import ObjectInfo, PartialObject

LINES_MAX = 50


@dataclass
class GcReport:
    """What was removed, or with `dry_run` would be, by path; `kept` are shards whose objects are too young."""

    output: str
    dry_run: bool
    grace_s: float
    orphans: list[str] = field(default_factory=list)
    num_bytes: int = 0
    fenced: list[str] = field(default_factory=list)
    partial: list[str] = field(default_factory=list)
    probes: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        done = "would remove" if self.dry_run else "removed"
        lines = [
            f"{done} {len(self.orphans)} token objects that no commit names ({self.num_bytes} bytes), "
            f"{len(self.partial)} writes that never ended, {len(self.probes)} probes from {self.output}"
        ]
        if self.fenced:
            lines.append(
                f"{len(self.fenced)} shards had no commit and {'would get' if self.dry_run else 'got'} a fence: an "
                "attempt that still sleeps somewhere can no longer commit; the next run does them anew"
            )
        if self.kept:
            lines.append(
                f"{len(self.kept)} shards left alone: they have objects younger than {self.grace_s:g} s (--grace-s)"
            )
        lines += self.notes
        removed = [*self.orphans, *self.partial, *self.probes]
        lines += [f"{done}: {path}" for path in removed[:LINES_MAX]]
        if len(removed) > LINES_MAX:
            lines.append(f"and {len(removed) - LINES_MAX} more; --json lists every one")
        return lines

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def collect_garbage(
    output: str,
    storage: StorageConfig,
    retry: RetryConfig,
    *,
    grace_s: float,
    dry_run: bool,
    clock: Callable[[], float],
) -> GcReport:
    """Remove what is older than `grace_s` by the store's own times and `clock`, a Unix time.

    Younger things may be of an attempt under way: a fence would do no harm, but cost it its work.

    Raises `RefusedError` when there is no job or the store lets no fence stand, `StoreDeniedError` or
    `StoreUnavailableError` when the place cannot be read or written; what was removed until then was garbage.
    """
    place = output_place(output)
    store = Stores(storage, retry)(place.base)
    job = read_job(store, place)
    if not dry_run:
        _check_fences_hold(store, place)
    report = GcReport(place.base, dry_run, grace_s)
    oldest_s = clock() - grace_s
    manifest = fold_commits(store, place, job.fingerprint)
    probes: list[ObjectInfo] = []
    found = unnamed_objects(_without_probes(store.list(place.base), place, probes), place, manifest)
    _remove_orphans(store, place, found, oldest_s, report)
    _remove_partial(store, place, oldest_s, report)
    for info in probes:
        if _is_old(info, oldest_s):
            report.probes.append(place.path(info.uri))
            if not dry_run:
                store.delete(info.uri)
    return report


def _check_fences_hold(store: Store, place: OutputPlace) -> None:
    try:
        probe_put_if_absent(store, place.base)
    except UnsafeStoreError as error:
        raise UnsafeStoreError(
            f"the store of {place.base} ignores put-if-absent, so no fence would hold an attempt that still sleeps; "
            "nothing was removed: delete what `voxmill verify` calls orphans while no run is alive"
        ) from error


def _without_probes(listed: Iterable[ObjectInfo], place: OutputPlace, probes: list[ObjectInfo]) -> Iterator[ObjectInfo]:
    for info in listed:
        if place.path(info.uri).startswith(PROBE_PREFIX):
            probes.append(info)
        else:
            yield info


def _remove_orphans(
    store: Store, place: OutputPlace, found: Mapping[str, list[ObjectInfo]], oldest_s: float, report: GcReport
) -> None:
    for shard_id, infos in sorted(found.items()):
        if not all(_is_old(info, oldest_s) for info in infos):
            report.kept.append(shard_id)
            continue
        if report.dry_run:
            standing = find_commit(store, place, shard_id)
            removed = [info for info in infos if not _names(standing, place.path(info.uri))]
        else:
            standing = close_term(store, place, shard_id)
            removed = delete_unnamed(store, place, infos, standing)
        if standing is None:
            report.fenced.append(shard_id)
        report.orphans += [place.path(info.uri) for info in removed]
        report.num_bytes += sum(info.size_bytes for info in removed)


def _remove_partial(store: Store, place: OutputPlace, oldest_s: float, report: GcReport) -> None:
    try:
        old: Iterable[PartialObject] = [p for p in store.list_partial(place.base) if p.started_unix_s < oldest_s]
    except RefusedError as error:  # a right of its own on S3, and not every store knows the request
        report.notes.append(f"writes that never ended were not looked for: {error}")
        return
    for partial in old:
        report.partial.append(place.path(partial.uri))
        if not report.dry_run:
            store.drop_partial(partial)


def _is_old(info: ObjectInfo, oldest_s: float) -> bool:
    return info.modified_unix_s is not None and info.modified_unix_s < oldest_s


def _names(record: CommitRecord | None, path: str) -> bool:
    return record is not None and path in {item.path for item in record.objects}
