"""What must be true of one committed shard: bytes, counts, ids, frames, keys."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.layout import OutputPlace, parse_token_path
from pipeline.records import CommitRecord, JobRecord, ObjectRecord
from pipeline.storage import Store

RANGE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a job's record says of every row."""

    fingerprint: str
    streams: tuple[str, ...]
    frame_size: int
    semantic_cardinality: int
    acoustic_cardinalities: tuple[int, ...]

    @classmethod
    def of(cls, job: JobRecord) -> TokenRules:
        """From `job.json`."""
        codec = job.codec
        return cls(
            fingerprint=job.fingerprint,
            streams=tuple(job.parts["streams"]),
            frame_size=codec["frame_size"],
            semantic_cardinality=codec["semantic_cardinality"],
            acoustic_cardinalities=tuple(codec["acoustic_cardinalities"][: codec["num_acoustic_codebooks"]]),
        )


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of any format; `ids` by stream: uint16 [K, F]."""

    key: str
    num_frames: int
    num_audio_samples: int
    segments: list[dict[str, int]]
    ids: dict[str, NDArray[np.uint16]]


def check_shard(
    store: Store, place: OutputPlace, rules: TokenRules, shard_id: str, record: CommitRecord
) -> Iterator[str]:
    """Every fault of one committed shard, as a line."""
    if record.shard_id != shard_id:
        yield f"its commit record is of shard {record.shard_id}"
    if record.fingerprint != rules.fingerprint:
        yield f"its commit record has fingerprint {record.fingerprint[:12]}, the job {rules.fingerprint[:12]}"
    with ExitStack() as files:
        fetched: dict[str, IO[bytes]] = {}
        for item in record.objects:
            if parse_token_path(item.path) != (shard_id, record.attempt):
                yield f"{item.path}: is not an object of attempt {record.attempt}"
                continue
            file = files.enter_context(TemporaryFile(prefix="voxmill-"))
            fault = _fetch(store, place.uri(item.path), item, file)
            if fault:
                yield f"{item.path}: {fault}"
            else:
                fetched[item.path.split("/")[0]] = file
        if len(fetched) == len(record.objects):
            yield from _check_contents(fetched, rules, record)


def _fetch(store: Store, uri: str, item: ObjectRecord, file: IO[bytes]) -> str | None:
    """Copy an object to a local file; returns what is wrong with its size or checksum."""
    try:
        info = store.stat(uri)
        if info.size_bytes != item.num_bytes:
            return f"has {info.size_bytes} bytes, its commit says {item.num_bytes}"
        digest = hashlib.sha256()
        for start in range(0, item.num_bytes, RANGE_BYTES):
            end = min(start + RANGE_BYTES, item.num_bytes)
            content = store.read_range(uri, start, end, etag=info.etag)
            digest.update(content)
            file.write(content)
    except DataError as error:
        return str(error)
    if digest.hexdigest() != item.sha256:
        return f"has sha256 {digest.hexdigest()}, its commit says {item.sha256}"
    file.seek(0)
    return None


def _check_contents(files: dict[str, IO[bytes]], rules: TokenRules, record: CommitRecord) -> Iterator[str]:
    counts = record.counts
    try:
        if "tokens" in files:
            rows = _parquet_rows(files["tokens"], rules)
        else:
            rows = _tar_rows({stream: files[stream] for stream in rules.streams}, rules)
        num_rejected = pq.read_metadata(files["rejects"]).num_rows if "rejects" in files else 0
        faults, num_rows, num_frames, num_audio_samples = _check_rows(rows, rules)
    except (pa.ArrowException, tarfile.TarError, ValueError, KeyError) as error:
        yield f"cannot be read as token shard: {type(error).__name__}: {error}"
        return
    yield from faults
    found = {"num_rows": num_rows, "num_frames": num_frames, "num_audio_samples": num_audio_samples}
    found |= {"num_rejected": num_rejected, "num_samples": num_rows + num_rejected}
    for name, value in found.items():
        if value != getattr(counts, name):
            yield f"{name} is {value}, its commit says {getattr(counts, name)}"
    if sum(counts.rejects.values()) != counts.num_rejected:
        yield f"rejects by reason {counts.rejects} do not add up to {counts.num_rejected}"


def _check_rows(rows: Iterable[_Row], rules: TokenRules) -> tuple[list[str], int, int, int]:
    faults: list[str] = []
    keys: set[str] = set()
    num_frames = num_audio_samples = 0
    for row in rows:
        if row.key in keys:
            faults.append(f"key {row.key!r} stands twice")
        keys.add(row.key)
        num_frames += row.num_frames
        num_audio_samples += row.num_audio_samples
        faults += [f"key {row.key!r}: {fault}" for fault in _check_row(row, rules)]
    return faults, len(keys), num_frames, num_audio_samples


def _check_row(row: _Row, rules: TokenRules) -> Iterator[str]:
    expected = -(-row.num_audio_samples // rules.frame_size)
    if row.num_frames != expected:
        yield f"{row.num_frames} frames, {row.num_audio_samples} audio samples make {expected}"
    position = 0
    for segment in row.segments:
        if segment["start"] != position or segment["num_frames"] != -(-segment["length"] // rules.frame_size):
            yield f"segment {segment} does not follow on, or its frames do not match its length"
        position = segment["start"] + segment["length"]
    if position != row.num_audio_samples:
        yield f"segments end at {position}, the clip at {row.num_audio_samples}"
    limits = {"semantic": (rules.semantic_cardinality,), "acoustic": rules.acoustic_cardinalities}
    for stream in rules.streams:
        ids, cardinalities = row.ids[stream], limits[stream]
        if ids.shape != (len(cardinalities), row.num_frames):
            yield f"{stream} ids have shape {ids.shape}, expected {(len(cardinalities), row.num_frames)}"
        elif (ids >= np.asarray(cardinalities)[:, None]).any():
            yield f"a {stream} id is not below its cardinality {cardinalities}"


def _parquet_rows(file: IO[bytes], rules: TokenRules) -> Iterator[_Row]:
    parquet = pq.ParquetFile(file)
    metadata = parquet.schema_arrow.metadata or {}
    if metadata.get(b"voxmill.fingerprint") != rules.fingerprint.encode():
        raise ValueError("the file's own fingerprint is not the job's")
    columns = {
        "semantic": ["semantic"],
        "acoustic": [f"acoustic_{k}" for k in range(len(rules.acoustic_cardinalities))],
    }
    for batch in parquet.iter_batches(batch_size=256):
        fixed = batch.select(["key", "num_frames", "num_audio_samples", "segments"]).to_pylist()
        for index, row in enumerate(fixed):
            ids = {stream: _stack([batch[name][index] for name in columns[stream]]) for stream in rules.streams}
            yield _Row(**row, ids=ids)


def _stack(columns: list[Any]) -> NDArray[np.uint16]:
    rows = [scalar.values.to_numpy() for scalar in columns]
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"codebooks of one row have different lengths {[len(row) for row in rows]}")
    return np.stack(rows)


def _tar_rows(files: dict[str, IO[bytes]], rules: TokenRules) -> Iterator[_Row]:
    """Rows of the streams' tars side by side: same keys in the same order, same numbers."""
    readers = {stream: _tar_samples(file, stream, rules) for stream, file in files.items()}
    for parts in zip(*readers.values(), strict=True):
        numbers = [part[0] for part in parts]
        if any(other != numbers[0] for other in numbers[1:]):
            raise ValueError(f"the tars differ at key {numbers[0]['key']!r}")
        ids = dict(zip(readers, (part[1] for part in parts), strict=True))
        wanted = ("key", "num_frames", "num_audio_samples", "segments")
        yield _Row(**{name: numbers[0][name] for name in wanted}, ids=ids)


def _tar_samples(
    file: IO[bytes], stream: str, rules: TokenRules
) -> Iterator[tuple[dict[str, Any], NDArray[np.uint16]]]:
    """(numbers, ids [K, F]) of each sample; `<key>.<stream>.npy` stands right before `<key>.json`."""
    ids: NDArray[np.uint16] | None = None
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            content = tar.extractfile(member)
            if content is None:
                raise ValueError(f"member {member.name!r} is no file")
            if member.name.endswith(f".{stream}.npy"):
                ids = np.atleast_2d(np.lib.format.read_array(io.BytesIO(content.read()), allow_pickle=False))
            elif ids is not None and member.name.endswith(".json") and not member.name.endswith(".source.json"):
                numbers = json.load(content)
                if numbers["voxmill.fingerprint"] != rules.fingerprint:
                    raise ValueError("a row's own fingerprint is not the job's")
                yield numbers, ids
                ids = None
