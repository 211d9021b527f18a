"""Open a job: from a config to what is left to do. What can be refused is refused here, before work starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from codec.base import CodecInfo
from codec.registry import NAMES, check_arithmetic, codec_info
from jobs.replica import ReplicaSetup, Setup, checkpoint_options
from jobs.streams import check_streams
from pipeline.commit import find_commit, find_standing, take_back
from pipeline.config import CommonConfig, Device, JobConfig
from pipeline.errors import ConfigError, DataError, OtherJobError, RefusedError, UnsafeStoreError
from pipeline.fingerprint import fingerprint, fingerprint_parts
from pipeline.job import claim_job
from pipeline.layout import OutputPlace, output_place
from pipeline.manifest import Manifest, fold_commits
from pipeline.manifest_rows import ManifestRow
from pipeline.media_walk import HAS_MEDIA
from pipeline.records import RECORD_BYTES_MAX, CodecRecord, FailureRecord, JobRecord
from pipeline.shards import Listing, StoreAt, list_shards
from pipeline.storage import Store, Stores, probe_put_if_absent
from pipeline.types import Shard

Config = TypeVar("Config", bound=CommonConfig)

NAMES_SHOWN = 10
"""Messages name so many shards; the rest stand in the records."""


@dataclass(frozen=True)
class OpenJob:
    """A job whose place is ours to write, and where it stands."""

    config: CommonConfig
    place: OutputPlace
    store: Store
    setup: Setup
    listing: Listing
    manifest: Manifest
    todo: tuple[Shard, ...]
    failed_before: dict[str, FailureRecord]
    unsafe_store: bool

    @property
    def num_shards(self) -> int:
        """Shards that the job has to have: found or missing."""
        return len(self.listing.shards) + len(self.listing.missing)

    @property
    def num_done(self) -> int:
        """Listed shards that were committed before."""
        return len(self.listing.shards) - len(self.todo) - len(self.failed_before)


def absolute(config: Config) -> Config:
    """The config with absolute places, since replicas may run in other folders."""
    places = {"output": output_place(config.output).base}
    if config.codec not in ("", *NAMES) and "://" not in config.codec and Path(config.codec).is_dir():
        places["codec"] = str(Path(config.codec).absolute())
    return config.model_copy(update=places)


def open_job(config: JobConfig, device: Device, *, stores: StoreAt | None = None) -> OpenJob:
    """List the inputs, know the codec, claim the output place, and find what is left to do.

    `stores` gives the store of a URI; by default those that the config names.

    Raises `RefusedError` for whatever must be mended first, `codec.base.CodecError` for a codec that
    cannot be had.
    """
    stores = stores or Stores(config.storage, config.retry)
    store = stores(config.output)
    place = OutputPlace(config.output)
    listing = list_shards(config.input, stores)
    if not listing.shards:
        raise ConfigError(f"no input shard is there; asked for: {_some(listing.missing or config.input)}")
    _check_apart(listing, place)
    info = codec_info(config.codec, storage_options=checkpoint_options(config))
    check_codec(config, info, device)
    parts = fingerprint_parts(config, info, device, has_media=HAS_MEDIA)
    setup = ReplicaSetup(config, fingerprint(parts), device, info)
    return claim_and_resume(place, store, setup, listing, job_record(config, parts, codec_record(info)))


def claim_and_resume(place: OutputPlace, store: Store, setup: Setup, listing: Listing, record: JobRecord) -> OpenJob:
    """Claim the output place for a job of any kind, and find what of its inputs is left to do.

    Raises `RefusedError` for an unsafe store, another job's place, or inputs that changed after their commit.
    """
    config = setup.config
    unsafe_store = _probe(config, store)
    claim_job(store, place, record)
    manifest = fold_commits(store, place, setup.fingerprint)
    _check_fingerprints(manifest)
    manifest = _without_changed(config, store, place, listing, manifest)
    undone = [shard for shard in listing.shards if shard.shard_id not in manifest.rows]
    failed_before = {} if config.retry_failed else _failed_before(store, place, undone)
    todo = tuple(shard for shard in undone if shard.shard_id not in failed_before)
    return OpenJob(config, place, store, setup, listing, manifest, todo, failed_before, unsafe_store)


def _check_apart(listing: Listing, place: OutputPlace) -> None:
    inside = [shard.uri for shard in listing.shards if shard.uri.startswith(f"{place.base}/")]
    if inside:
        raise ConfigError(
            f"{len(inside)} input shards are in the output place {place.base} ({_some(inside)}): a run would "
            "tokenize its own output; name the inputs more closely, or another output"
        )


def check_codec(config: JobConfig, info: CodecInfo, device: Device) -> None:
    """Raises `ConfigError` where the codec cannot do what the config asks."""
    try:
        check_arithmetic(config.codec, info, device=device, precision=config.precision)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if config.batching.segment_s * info.sample_rate_hz < info.frame_size:
        raise ConfigError(f"batching.segment_s is {config.batching.segment_s}, less than one frame of {info.name}")
    num_acoustic = len(info.acoustic_cardinalities)
    check_streams(config, codec=info.name, has_semantic=info.semantic_cardinality > 0, num_acoustic=num_acoustic)
    config.check_codebooks(info.name, num_acoustic, tells_residuals=info.tells_residuals)
    if config.batching.segment_s > info.segment_s_max:
        raise ConfigError(
            f"batching.segment_s is {config.batching.segment_s}, codec {info.name} takes at most {info.segment_s_max}"
        )
    if max((info.semantic_cardinality, *info.acoustic_cardinalities)) > 1 << 16:
        raise ConfigError(f"codec {info.name} has a codebook of more than 65536 entries; token shards hold uint16")


def _probe(config: CommonConfig, store: Store) -> bool:
    """Whether the store is unsafe, and allowed to be."""
    try:
        probe_put_if_absent(store, config.output)
    except UnsafeStoreError:
        if not config.allow_unsafe_store:
            raise
        return True
    return False


def job_record(config: CommonConfig, parts: dict[str, Any], codec: CodecRecord) -> JobRecord:
    """What `job.json` says of a job whose audio or tokens these parts decide."""
    return JobRecord(
        voxmill_version=version("voxmill"),
        fingerprint=fingerprint(parts),
        parts=parts,
        config=config.model_dump(mode="json"),
        codec=codec,
    )


def codec_record(info: CodecInfo) -> CodecRecord:
    """The codec's numbers as `job.json` has them."""
    return CodecRecord(
        name=info.name,
        checkpoint_hash=info.checkpoint_hash,
        sample_rate_hz=info.sample_rate_hz,
        frame_size=info.frame_size,
        semantic_cardinality=info.semantic_cardinality,
        acoustic_cardinalities=info.acoustic_cardinalities,
    )


def _check_fingerprints(manifest: Manifest) -> None:
    strange = manifest.rows.strange()
    if strange:
        raise OtherJobError(
            f"{len(strange)} commit records are of another job ({_some(strange)}); the output place was mixed "
            "with another one; move them away and run again"
        )


def _without_changed(
    config: CommonConfig, store: Store, place: OutputPlace, listing: Listing, manifest: Manifest
) -> Manifest:
    """Refuse inputs that changed after their commit, or with `redo_changed` take back their commits."""
    changed: list[tuple[Shard, str]] = []
    etags = manifest.rows.input_etags()
    for shard in listing.shards:
        if etags.get(shard.shard_id, shard.etag) != shard.etag:
            record = find_commit(store, place, shard.shard_id)  # the manifest is derived: it may be damaged
            if record is not None and record.input.etag == shard.etag:
                manifest.rows[shard.shard_id] = ManifestRow(record, commit_etag="")
            else:
                changed.append((shard, record.attempt if record is not None else ""))
    if changed and not config.redo_changed:
        raise RefusedError(
            f"{len(changed)} committed inputs have changed since: {_some([shard.uri for shard, _ in changed])}; "
            "put the old objects back, or do the new ones with --redo-changed"
        )
    for shard, attempt in changed:
        # Another driver may have redone it meanwhile: only the commit that was judged is taken back.
        standing = find_standing(store, place, shard.shard_id)
        if standing.record is not None and standing.record.attempt == attempt:
            take_back(store, place, standing)
        del manifest.rows[shard.shard_id]
    return manifest


def _failed_before(store: Store, place: OutputPlace, undone: Iterable[Shard]) -> dict[str, FailureRecord]:
    """Shards that an earlier run gave up, with the last reason; a changed input is tried again by itself."""
    etags = {shard.shard_id: shard.etag for shard in undone}
    uris = [info.uri for info in store.list(place.failures)]
    wanted = [uri for uri in uris if place.path(uri).split("/")[1] in etags]
    found: dict[str, FailureRecord] = {}
    for record in _read_failures(store, wanted):
        if record.waits and record.input.etag == etags.get(record.shard_id):
            found[record.shard_id] = record
    return found


def _read_failures(store: Store, uris: list[str]) -> Iterator[FailureRecord]:
    def read(uri: str) -> FailureRecord | None:
        try:
            return FailureRecord.from_bytes(store.read(uri, bytes_max=RECORD_BYTES_MAX), uri)
        except (DataError, RefusedError):
            return None  # deleted meanwhile, or damaged: then its shard is just tried again

    with ThreadPoolExecutor(16, thread_name_prefix="failures") as pool:
        for record in pool.map(read, uris):
            if record is not None:
                yield record


def _some(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"
