"""Token shards read back into rows, from either format; strict, since readers and `voxmill verify` rest on it."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.settings import WritingConfig
from pipeline.types import Segment, TokenRow
from pipeline.writer import TokenFormat, parquet_schema

READ_ERRORS = (pa.ArrowException, tarfile.TarError, ValueError, KeyError, TypeError)
"""What a file that is no token shard makes of itself when it is read."""

BATCH_ROWS = 256
"""Read from a parquet file at once."""


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
    adaptive: bool = False

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


def read_rows(files: Mapping[str, IO[bytes]], rules: TokenRules, *, sidecars: bool = True) -> Iterator[TokenRow]:
    """The rows of one shard, in order; `files` are its objects by the folder of the output place that they stand in.

    Raises one of `READ_ERRORS`, or `OSError`, when they are no token shard of the job.
    """
    if "tokens" in files:
        return _parquet_rows(files["tokens"], rules, rules.carry if sidecars else ())
    return _tar_rows({stream: files[stream] for stream in rules.streams}, rules)


def row_faults(row: TokenRow, rules: TokenRules) -> Iterator[str]:
    """What is wrong with a row's numbers and ids, each as a line."""
    expected = -(-row.num_audio_samples // rules.frame_size)
    if row.num_frames != expected:
        yield f"{row.num_frames} frames, {row.num_audio_samples} audio samples make {expected}"
    position = 0
    for segment in row.segments:
        if segment.start != position or segment.num_frames != -(-segment.length // rules.frame_size):
            yield f"segment {segment} does not follow on, or its frames do not match its length"
        position = segment.start + segment.length
    if position != row.num_audio_samples:
        yield f"segments end at {position}, the clip at {row.num_audio_samples}"
    limits = {"semantic": (rules.semantic_cardinality,), "acoustic": rules.acoustic_cardinalities}
    for stream in rules.streams:
        found = row.semantic if stream == "semantic" else row.acoustic
        assert found is not None, "the readers below give every stream of the rules"
        ids, cardinalities = np.atleast_2d(found), limits[stream]
        if stream == "acoustic" and rules.adaptive:
            cardinalities = cardinalities[: len(ids)]
        if ids.shape != (len(cardinalities), row.num_frames):
            yield f"{stream} ids have shape {ids.shape}, expected {(len(cardinalities), row.num_frames)}"
        elif (ids >= np.asarray(cardinalities)[:, None]).any():
            yield f"a {stream} id is not below its cardinality {cardinalities}"


def _batches(parquet: pq.ParquetFile, names: list[str]) -> Iterator[pa.RecordBatch]:
    """Group by group: the writer closed each by its bytes, and batches over several would undo that."""
    for group in range(parquet.num_row_groups):
        yield from parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=names, use_threads=False)


def _parquet_rows(file: IO[bytes], rules: TokenRules, carry: tuple[str, ...]) -> Iterator[TokenRow]:
    parquet = pq.ParquetFile(file)
    metadata = parquet.schema_arrow.metadata or {}
    if metadata.get(b"voxmill.fingerprint") != rules.fingerprint.encode():
        raise ValueError("the file's own fingerprint is not the job's")
    if not parquet.schema_arrow.equals(rules.schema, check_metadata=False):
        raise ValueError(f"its columns are not the job's: {_lines(parquet.schema_arrow)}; {_lines(rules.schema)}")
    numbers = ["key", "num_frames", "num_audio_samples", "source_sample_rate_hz", "source_num_channels", "segments"]
    codebooks = [f"acoustic_{k}" for k in range(len(rules.acoustic_cardinalities))]
    semantic = ["semantic"] if "semantic" in rules.streams else []
    own = ["num_acoustic_codebooks"] if rules.adaptive else []
    names = [*numbers, *own, *semantic, *codebooks, *carry]
    for batch in _batches(parquet, names):
        fixed = batch.select([*numbers, *own, *carry]).to_pylist()
        for index, row in enumerate(fixed):
            if row["segments"] is None:
                raise ValueError(f"key {row['key']!r} has no segments")
            acoustic = [batch[name][index] for name in codebooks]
            if rules.adaptive:
                acoustic = _chosen(acoustic, row["num_acoustic_codebooks"], row["key"])
            yield TokenRow(
                **{name: row[name] for name in numbers if name != "segments"},
                segments=tuple(Segment(**segment) for segment in row["segments"]),
                semantic=_stack([batch[name][index] for name in semantic])[0] if semantic else None,
                acoustic=_stack(acoustic) if codebooks else None,
                sidecars={suffix: _bytes(row[suffix]) for suffix in carry if row[suffix] is not None},
            )


def _lines(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _bytes(sidecar: str | bytes) -> bytes:
    return sidecar.encode() if isinstance(sidecar, str) else sidecar


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


_TarSample = tuple[dict[str, Any], NDArray[np.uint16], dict[str, bytes]]


def _tar_rows(files: dict[str, IO[bytes]], rules: TokenRules) -> Iterator[TokenRow]:
    """Rows of the streams' tars side by side: same keys in the same order, same numbers."""
    readers = {stream: _tar_samples(file, stream, rules) for stream, file in files.items()}
    for parts in zip(*readers.values(), strict=True):
        numbers = parts[0][0]
        if any(other[0] != numbers for other in parts[1:]):
            raise ValueError(f"the tars differ at key {numbers['key']!r}")
        ids = dict(zip(readers, (part[1] for part in parts), strict=True))
        semantic = ids.get("semantic")
        if semantic is not None and len(semantic) != 1:
            raise ValueError(f"key {numbers['key']!r} has {len(semantic)} rows of semantic ids")
        yield TokenRow(
            key=numbers["key"],
            num_frames=numbers["num_frames"],
            num_audio_samples=numbers["num_audio_samples"],
            source_sample_rate_hz=numbers["source_sample_rate_hz"],
            source_num_channels=numbers["source_num_channels"],
            segments=tuple(Segment(**segment) for segment in numbers["segments"]),
            semantic=None if semantic is None else semantic[0],
            acoustic=ids.get("acoustic"),
            sidecars=parts[0][2],
        )


def _tar_samples(file: IO[bytes], stream: str, rules: TokenRules) -> Iterator[_TarSample]:
    """(numbers, ids [K, F], sidecars) of each sample: `<key>.<stream>.npy`, then `<key>.json`, then its sidecars."""
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
            carried = {f"{key}.{'source.json' if name == 'json' else name}": name for name in rules.carry}
            sidecars: dict[str, bytes] = {}
            member = next(members, None)
            while member is not None and member.name in carried:
                sidecars[carried.pop(member.name)] = _content(tar, member)
                member = next(members, None)
            yield numbers, np.atleast_2d(ids), sidecars


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
