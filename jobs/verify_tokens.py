"""What must be true of one committed shard: bytes, counts, ids, frames, keys."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.config import WritingConfig, fingerprint
from pipeline.errors import DataError, RefusedError
from pipeline.layout import OutputPlace, parse_token_path
from pipeline.records import CommitRecord, JobRecord, ObjectRecord
from pipeline.storage import Store
from pipeline.types import Shard
from pipeline.writer import REJECTS_SCHEMA, TokenFormat, parquet_schema

RANGE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a job's record says of every row."""

    fingerprint: str
    streams: tuple[str, ...]
    carry: tuple[str, ...]
    sample_rate_hz: int
    frame_size: int
    semantic_cardinality: int
    acoustic_cardinalities: tuple[int, ...]
    adaptive: bool

    @classmethod
    def of(cls, job: JobRecord, uri: str) -> TokenRules:
        """From the parts of `job.json` that its fingerprint covers. Raises `RefusedError` when it does not."""
        parts = job.parts
        if fingerprint(parts) != job.fingerprint:
            raise RefusedError(f"{uri} was changed: its fingerprint is not that of its parts; put the right one back")
        return cls(
            fingerprint=job.fingerprint,
            streams=tuple(parts["streams"]),
            carry=tuple(parts["carry"]),
            sample_rate_hz=parts["codec.sample_rate_hz"],
            frame_size=parts["codec.frame_size"],
            semantic_cardinality=parts["codec.semantic_cardinality"],
            acoustic_cardinalities=tuple(parts["codec.acoustic_cardinalities"][: parts["num_acoustic_codebooks"]]),
            adaptive="acoustic_residual_max" in parts,
        )

    @property
    def schema(self) -> pa.Schema:
        """Columns of a parquet token shard of the job."""
        return parquet_schema(
            TokenFormat(
                semantic="semantic" in self.streams,
                num_acoustic_codebooks=len(self.acoustic_cardinalities),
                carry=self.carry,
                metadata={},
                writing=WritingConfig(),
                adaptive=self.adaptive,
            )
        )


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of any format; `ids` by stream: uint16 [K, F], K as the row says where clips choose their codebooks."""

    key: str
    num_frames: int
    num_audio_samples: int
    segments: list[dict[str, int]]
    ids: dict[str, NDArray[np.uint16]]


@dataclass
class _Found:
    """What the rows of a shard came to, to be compared with the counts of its commit."""

    faults: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    num_frames: int = 0
    num_audio_samples: int = 0
    num_frames_by_codebooks: Counter[int] = field(default_factory=Counter)


def check_shard(
    store: Store, place: OutputPlace, rules: TokenRules, shard_id: str, record: CommitRecord
) -> Iterator[str]:
    """Every fault of one committed shard, as a line."""
    if record.shard_id != shard_id:
        yield f"its commit record is of shard {record.shard_id}"
    shard = Shard(record.input.uri, record.input.size_bytes, record.input.etag)
    if shard.shard_id != shard_id:
        yield f"its commit record is of input {record.input.uri}, whose shard id is {shard.shard_id}"
    if len({item.path for item in record.objects}) != len(record.objects):
        yield "its commit record names an object twice"
        return
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
        rejects = _count_rejects(files["rejects"]) if "rejects" in files else {}
        rows_found = _check_rows(rows, rules)
    except (pa.ArrowException, tarfile.TarError, OSError, ValueError, KeyError) as error:
        yield f"cannot be read as token shard: {type(error).__name__}: {error}"
        return
    yield from rows_found.faults
    num_rows, num_audio_samples = len(rows_found.keys), rows_found.num_audio_samples
    found = {"num_rows": num_rows, "num_frames": rows_found.num_frames, "num_audio_samples": num_audio_samples}
    num_rejected = sum(rejects.values())
    found |= {"num_rejected": num_rejected, "num_samples": num_rows + num_rejected}
    for name, value in found.items():
        if value != getattr(counts, name):
            yield f"{name} is {value}, its commit says {getattr(counts, name)}"
    if rejects != counts.rejects:
        yield f"rejects by reason are {rejects}, its commit says {counts.rejects}"
    if rows_found.num_frames_by_codebooks != counts.num_frames_by_codebooks:
        by_codebooks = dict(sorted(rows_found.num_frames_by_codebooks.items()))
        yield f"frames by codebooks are {by_codebooks}, its commit says {counts.num_frames_by_codebooks}"
    if abs(counts.audio_s - num_audio_samples / rules.sample_rate_hz) > 1e-3:
        yield f"audio_s is {num_audio_samples / rules.sample_rate_hz}, its commit says {counts.audio_s}"


def _count_rejects(file: IO[bytes]) -> dict[str, int]:
    table = pq.ParquetFile(file).read(use_threads=False)
    if not table.schema.equals(REJECTS_SCHEMA, check_metadata=False):
        raise ValueError(f"the reject list has columns {table.schema.names}")
    return dict(sorted(Counter(table["reason"].to_pylist()).items()))


def _check_rows(rows: Iterable[_Row], rules: TokenRules) -> _Found:
    found = _Found()
    for row in rows:
        if row.key in found.keys:
            found.faults.append(f"key {row.key!r} stands twice")
        found.keys.add(row.key)
        found.num_frames += row.num_frames
        found.num_audio_samples += row.num_audio_samples
        if rules.adaptive:
            found.num_frames_by_codebooks[len(row.ids["acoustic"])] += row.num_frames
        found.faults += [f"key {row.key!r}: {fault}" for fault in _check_row(row, rules)]
    return found


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
        if stream == "acoustic" and rules.adaptive:
            cardinalities = cardinalities[: len(ids)]
        if ids.shape != (len(cardinalities), row.num_frames):
            yield f"{stream} ids have shape {ids.shape}, expected {(len(cardinalities), row.num_frames)}"
        elif (ids >= np.asarray(cardinalities)[:, None]).any():
            yield f"a {stream} id is not below its cardinality {cardinalities}"


def _parquet_rows(file: IO[bytes], rules: TokenRules) -> Iterator[_Row]:
    parquet = pq.ParquetFile(file)
    metadata = parquet.schema_arrow.metadata or {}
    if metadata.get(b"voxmill.fingerprint") != rules.fingerprint.encode():
        raise ValueError("the file's own fingerprint is not the job's")
    if not parquet.schema_arrow.equals(rules.schema, check_metadata=False):
        raise ValueError(f"its columns are not the job's: {_lines(parquet.schema_arrow)}; {_lines(rules.schema)}")
    columns = {
        "semantic": ["semantic"],
        "acoustic": [f"acoustic_{k}" for k in range(len(rules.acoustic_cardinalities))],
    }
    numbers = ["key", "num_frames", "num_audio_samples", "segments"]
    numbers += ["num_acoustic_codebooks"] if rules.adaptive else []
    for batch in parquet.iter_batches(batch_size=256, use_threads=False):
        fixed = batch.select(numbers).to_pylist()
        for index, row in enumerate(fixed):
            if row["segments"] is None:
                raise ValueError(f"key {row['key']!r} has no segments")
            found = {stream: [batch[name][index] for name in columns[stream]] for stream in rules.streams}
            if rules.adaptive:
                found["acoustic"] = _chosen(found["acoustic"], row.pop("num_acoustic_codebooks"), row["key"])
            yield _Row(**row, ids={stream: _stack(scalars) for stream, scalars in found.items()})


def _lines(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _chosen(columns: list[Any], num_codebooks: int, key: str) -> list[Any]:
    """The columns that an adaptive row has ids in: the first ones, as many as it says. Raises `ValueError`."""
    filled = [scalar.is_valid for scalar in columns]
    if not 1 <= num_codebooks <= len(columns) or filled != [k < num_codebooks for k in range(len(columns))]:
        held = [k for k, has_ids in enumerate(filled) if has_ids]
        raise ValueError(f"key {key!r} says that it has {num_codebooks} acoustic codebooks, and has ids in {held}")
    return columns[:num_codebooks]


def _stack(columns: list[Any]) -> NDArray[np.uint16]:
    if not all(scalar.is_valid for scalar in columns):
        raise ValueError("a row has no ids in a stream that the job has")
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
    """(numbers, ids [K, F]) of each sample: `<key>.<stream>.npy`, then `<key>.json`, then its sidecars."""
    suffix = f".{stream}.npy"
    with tarfile.open(fileobj=file, mode="r:") as tar:
        members = iter(tar)
        member = next(members, None)
        while member is not None:
            if not member.name.endswith(suffix):
                raise ValueError(f"member {member.name!r} stands where a <key>{suffix} should")
            key = member.name.removesuffix(suffix)
            ids = np.lib.format.read_array(io.BytesIO(_content(tar, member)), allow_pickle=False)
            numbers = json.loads(_content(tar, next(members, None)))
            if (numbers["key"], numbers["voxmill.fingerprint"]) != (key, rules.fingerprint):
                raise ValueError(f"the numbers beside {member.name!r} are of another key or job")
            if ids.dtype != np.uint16:
                raise ValueError(f"{member.name!r} holds {ids.dtype}, expected uint16")
            if rules.adaptive and stream == "acoustic":
                _check_chosen(ids, numbers["num_acoustic_codebooks"], rules, member.name)
            yield numbers, np.atleast_2d(ids)
            carried = {f"{key}.{'source.json' if name == 'json' else name}" for name in rules.carry}
            member = next(members, None)
            while member is not None and member.name in carried:
                carried.remove(member.name)
                member = next(members, None)


def _check_chosen(ids: NDArray[np.uint16], num_codebooks: int, rules: TokenRules, name: str) -> None:
    most = len(rules.acoustic_cardinalities)
    if num_codebooks not in range(1, most + 1) or ids.ndim != 2 or len(ids) != num_codebooks:
        raise ValueError(
            f"{name!r} has shape {ids.shape}; its numbers say {num_codebooks} acoustic codebooks, of {most} at most"
        )


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo | None) -> bytes:
    content = tar.extractfile(member) if member is not None else None
    if content is None:
        raise ValueError("the tar ends within a sample, or holds what is no file")
    return content.read()
