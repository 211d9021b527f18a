"""The product's own functions as actors on a stepped store, and ways to break their protocol."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import jobs.finish
import jobs.gc
import jobs.prepare
import pipeline.commit as protocol
from codec.registry import codec_info
from jobs.finish import RunReport, finish
from jobs.gc import collect_garbage
from jobs.prepare import OpenJob
from jobs.replica import ReplicaSetup
from jobs.view import RunView
from pipeline.commit import Committed, Standing, find_commit, find_standing
from pipeline.config import load_config
from pipeline.encoder import Progress
from pipeline.errors import DataError, InfraError, ObjectChangedError, StoreUnavailableError
from pipeline.layout import parse_token_path
from pipeline.manifest import Manifest, ManifestRow, fold_commits
from pipeline.records import CodecRecord, CommitRecord, JobRecord
from pipeline.settings import RetryConfig, StorageConfig
from pipeline.shards import Listing
from pipeline.turn import Turn
from pipeline.types import Shard, Task
from pipeline.worker import Workbench, process_shard
from tests.pipeline.stepping import PLACE, SteppedStore, World

INPUTS = ("s3://bucket/in/a.tar", "s3://bucket/in/b.tar")
TRIES_MAX = 3
CONFIG = load_config({"input": INPUTS, "output": PLACE.base, "codec": "calibrated:"})
INFO = codec_info("calibrated:")
SETUP = ReplicaSetup(CONFIG, "f" * 64, "cpu", INFO)
JOB = JobRecord(
    voxmill_version="0",
    fingerprint=SETUP.fingerprint,
    parts={},
    config={},
    codec=CodecRecord(
        name=INFO.name,
        checkpoint_hash=INFO.checkpoint_hash,
        sample_rate_hz=INFO.sample_rate_hz,
        frame_size=INFO.frame_size,
        semantic_cardinality=INFO.semantic_cardinality,
        acoustic_cardinalities=INFO.acoustic_cardinalities,
    ),
)

_current = threading.local()


class _Inputs:
    """The inputs' store; reading them is no step."""

    def __init__(self, world: World) -> None:
        self._world = world

    def read_range(self, uri: str, start: int, end: int, *, etag: str | None) -> bytes:
        content = self._world.inputs[uri]
        if hashlib.md5(content).hexdigest() != etag:
            raise ObjectChangedError(uri)
        return content[start:end]

    def md5(self, uri: str, *, etag: str) -> str:
        return etag


class _Serial:
    """Reads one commit after another, so that an actor is one thread."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Takes what a pool takes."""

    def __enter__(self) -> _Serial:
        return self

    def __exit__(self, *args: object) -> None:
        """Nothing is left to wait for."""

    map = staticmethod(map)


@contextmanager
def stepped() -> Iterator[None]:
    """The product on stepped stores."""
    with ExitStack() as stack:
        stack.enter_context(patch("pipeline.manifest.ThreadPoolExecutor", _Serial))
        stack.enter_context(patch("jobs.gc.probe_put_if_absent"))
        stack.enter_context(patch("jobs.gc.Stores", lambda *_: lambda uri: _current.store))
        stack.enter_context(patch("pipeline.worker.find_standing", _noted_standing))
        yield


def _noted_standing(store: SteppedStore, place: Any, shard_id: str) -> Standing:
    standing = find_standing(store, place, shard_id)
    store.world.terms[_current.attempt] = standing.term
    return standing


def new_world() -> World:
    """A job that is claimed, has done nothing, and has no input yet."""
    world = World()
    world.objects[PLACE.job] = JOB.to_bytes()
    return world


def change_input(world: World, uri: str) -> None:
    """Replace an input: an empty archive, each version of another length."""
    world.inputs[uri] = bytes(len(world.inputs.get(uri, bytes(512))) + 512)


def shard_of(world: World, uri: str) -> Shard:
    """An input as it is now."""
    content = world.inputs[uri]
    return Shard(uri, len(content), hashlib.md5(content).hexdigest())


def attempt(store: SteppedStore, shard: Shard) -> Committed:
    """The whole way of one shard."""
    inputs = _Inputs(store.world)
    bench = Workbench(
        config=CONFIG,
        fingerprint=SETUP.fingerprint,
        token_format=SETUP.token_format,
        place=PLACE,
        stores=lambda uri: inputs,
        outputs=store,
        decoder=SimpleNamespace(decode=lambda samples: iter(list(samples))),
        encoder=SimpleNamespace(
            codec=SimpleNamespace(info=INFO), turn=Turn(), windows=lambda clips, _: iter(list(clips))
        ),
        environment={},
    )
    _current.attempt = next(store.world.attempts)
    committed = process_shard(Task(shard, _current.attempt), bench, Progress())
    store.world.seen["ours" if committed.ours else "another's"] += 1
    return committed


def run(store: SteppedStore, *, redo: bool) -> RunReport:
    """A run from its listing to its report."""
    listing = Listing(tuple(shard_of(store.world, uri) for uri in store.world.inputs), ())
    config = CONFIG.model_copy(update={"redo_changed": redo})
    manifest = fold_commits(store, PLACE, SETUP.fingerprint)
    manifest = jobs.prepare._without_changed(config, store, PLACE, listing, manifest)
    todo = tuple(shard for shard in listing.shards if shard.shard_id not in manifest.rows)
    for shard in todo:
        for _ in range(TRIES_MAX):
            try:
                committed = attempt(store, shard)
            except (InfraError, DataError) as error:
                store.world.seen[type(error).__name__] += 1
            else:
                manifest.rows[shard.shard_id] = ManifestRow(committed.record, committed.etag)
                break
    job = OpenJob(config, PLACE, store, SETUP, listing, manifest, todo, {}, unsafe_store=False)
    report = finish(job, {}, interrupted=False, view=RunView(2, 0, 0.0), wall_s=1.0)
    store.world.seen[f"run {report.state}"] += 1
    return report


def gc(store: SteppedStore) -> None:
    """`voxmill gc` without a grace."""
    _current.store = store
    report = collect_garbage(PLACE.base, StorageConfig(), RetryConfig(), grace_s=0.0, dry_run=False, clock=lambda: 1.0)
    store.world.seen["gc fenced"] += len(report.fenced)
    store.world.seen["gc removed"] += len(report.orphans)


def _fence_over_anything(store: Any, place: Any, shard_id: str) -> CommitRecord | None:
    standing = find_standing(store, place, shard_id)
    if standing.record is None:
        store.put(place.commit(shard_id, standing.term), protocol.FENCE)
    return standing.record


def _delete_then_fence(store: Any, place: Any, found: Any, standing: CommitRecord | None) -> Any:
    found = list(found)
    deleted = _DELETE_UNNAMED(store, place, found, standing)
    for info in deleted[:1]:
        protocol.close_term(store, place, parse_token_path(place.path(info.uri))[0])
    return deleted


def _commit_in_a_term_found_late(store: Any, place: Any, record: CommitRecord) -> Committed:
    term = find_standing(store, place, record.shard_id).term
    return protocol.commit(store, place, record.model_copy(update={"term": term}))


def _commit_or_clean_up(store: Any, place: Any, record: CommitRecord) -> Committed:
    try:
        return protocol.commit(store, place, record)
    except StoreUnavailableError:
        for item in record.objects:
            store.delete(place.uri(item.path))
        raise


def _take_back_by_deleting(store: Any, place: Any, standing: Standing) -> None:
    store.delete(place.commit(standing.record.shard_id, standing.term))


def _sweep_by_manifest(job: OpenJob, _: Manifest) -> tuple[str, ...]:
    listed = [info for folder in jobs.finish.TOKEN_FOLDERS for info in job.store.list(job.place.uri(folder))]
    for shard_id, found in jobs.finish.unnamed_objects(listed, job.place, job.manifest).items():
        row = job.manifest.rows.get(shard_id)
        if row is not None:
            _DELETE_UNNAMED(job.store, job.place, found, row.record)
    return ()


def _sweep_that_lists_last(job: OpenJob, _: Manifest) -> tuple[str, ...]:
    standing = {shard.shard_id: find_commit(job.store, job.place, shard.shard_id) for shard in job.listing.shards}
    listed = [info for folder in jobs.finish.TOKEN_FOLDERS for info in job.store.list(job.place.uri(folder))]
    for shard_id, found in jobs.finish.unnamed_objects(listed, job.place, job.manifest).items():
        if standing.get(shard_id) is not None:
            _DELETE_UNNAMED(job.store, job.place, found, standing[shard_id])
    return ()


def _commit_over_anything(store: Any, place: Any, record: CommitRecord) -> Committed:
    store.put(place.commit(record.shard_id, record.term), record.to_bytes())
    return Committed(record, ours=True)


def _commit_that_never_loses(store: Any, place: Any, record: CommitRecord) -> Committed:
    """Takes `exists` for somebody else's, without reading back."""
    if store.put_if_absent(place.commit(record.shard_id, record.term), record.to_bytes()) is None:
        for item in record.objects:
            store.delete(place.uri(item.path))
    return Committed(record, ours=True)


_DELETE_UNNAMED = jobs.gc.delete_unnamed

BROKEN: dict[str, dict[str, Callable[..., Any]]] = {
    "fence over anything": {"jobs.gc.close_term": _fence_over_anything},
    "no fence": {"jobs.gc.close_term": find_commit},
    "delete, then fence": {"jobs.gc.close_term": find_commit, "jobs.gc.delete_unnamed": _delete_then_fence},
    "term found after the puts": {"pipeline.worker.commit": _commit_in_a_term_found_late},
    "clean up though unknown": {"pipeline.worker.commit": _commit_or_clean_up},
    "take back by deleting": {"jobs.prepare.take_back": _take_back_by_deleting},
    "sweep by the manifest": {"jobs.finish._sweep": _sweep_by_manifest},
    "sweep that lists last": {"jobs.finish._sweep": _sweep_that_lists_last},
    "commit over anything": {"pipeline.worker.commit": _commit_over_anything},
    "exists means lost": {"pipeline.worker.commit": _commit_that_never_loses},
}
"""Protocols that are wrong, by what they replace."""


@contextmanager
def broken(name: str) -> Iterator[None]:
    """The product with one of `BROKEN`."""
    with ExitStack() as stack:
        for target, replacement in BROKEN[name].items():
            stack.enter_context(patch(target, replacement))
        yield
