"""Token shards: rows in shard order to local spool files, in one of two formats; what goes where is in `layout.py`.

Nothing of time, host or attempt is inside a token shard, so its bytes are a function of the shard and the job.
"""

from __future__ import annotations

import io
import json
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.admission import is_text
from pipeline.settings import WritingConfig
from pipeline.spool import Spool
from pipeline.types import Reject, TokenRow

ROW_GROUP_FRAMES_MAX = 1 << 20
ROW_GROUP_SIDECAR_BYTES_MAX = 64 << 20
"""A row group closes at these even when it has few rows: long clips and large sidecars must not fill the memory."""


@dataclass(frozen=True, slots=True)
class TokenFormat:
    """What every token shard of a job has in common.

    In an `adaptive` one rows have `num_acoustic_codebooks` at most, and say how many.
    """

    semantic: bool
    num_acoustic_codebooks: int
    carry: tuple[str, ...]
    metadata: Mapping[str, str]
    writing: WritingConfig
    adaptive: bool = False


class TokenWriter(ABC):
    """Writes rows of one shard, in the order given, into a spool."""

    @abstractmethod
    def write(self, rows: Iterable[TokenRow]) -> None:
        """Add rows."""

    @abstractmethod
    def close(self) -> None:
        """Finish the files; a writer that is not closed has written nothing of use."""


def parquet_schema(token_format: TokenFormat) -> pa.Schema:
    """Columns of a parquet token shard: one a codebook, so that readers fetch just the codebooks they want."""
    ids = pa.list_(pa.field("element", pa.uint16(), nullable=False))
    segment = pa.struct(
        [
            pa.field("start", pa.int64(), nullable=False),
            pa.field("length", pa.int64(), nullable=False),
            pa.field("num_frames", pa.int32(), nullable=False),
        ]
    )
    fields = [
        pa.field("key", pa.string(), nullable=False),
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("num_audio_samples", pa.int64(), nullable=False),
        pa.field("source_sample_rate_hz", pa.int32(), nullable=False),
        pa.field("source_num_channels", pa.int32(), nullable=False),
        pa.field("segments", pa.list_(pa.field("element", segment, nullable=False))),
    ]
    if token_format.adaptive:
        fields.append(pa.field("num_acoustic_codebooks", pa.int16(), nullable=False))
    if token_format.semantic:
        fields.append(pa.field("semantic", ids))
    fields += [pa.field(f"acoustic_{k}", ids) for k in range(token_format.num_acoustic_codebooks)]
    fields += [pa.field(suffix, pa.string() if is_text(suffix) else pa.binary()) for suffix in token_format.carry]
    return pa.schema(fields, metadata=dict(token_format.metadata))


class ParquetTokenWriter(TokenWriter):
    """One parquet file; row groups close by rows and frames alone."""

    def __init__(self, spool: Spool, token_format: TokenFormat) -> None:
        self._format = token_format
        self._schema = parquet_schema(token_format)
        compression = token_format.writing.compression
        self._writer = pq.ParquetWriter(spool.file("tokens"), self._schema, compression=compression)
        spool.closes(self._writer)
        self._rows: list[TokenRow] = []
        self._num_frames = self._sidecar_bytes = 0

    def write(self, rows: Iterable[TokenRow]) -> None:
        """Add rows; memory holds one row group."""
        for row in rows:
            self._rows.append(row)
            self._num_frames += row.num_frames
            self._sidecar_bytes += sum(map(len, row.sidecars.values()))
            full = len(self._rows) >= self._format.writing.row_group_rows
            full = full or self._sidecar_bytes >= ROW_GROUP_SIDECAR_BYTES_MAX
            if full or self._num_frames >= ROW_GROUP_FRAMES_MAX:
                self._flush()

    def close(self) -> None:
        """Write the last row group and the footer."""
        if self._rows:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        rows, self._rows, self._num_frames, self._sidecar_bytes = self._rows, [], 0, 0
        columns: dict[str, Any] = {
            "key": [row.key for row in rows],
            "num_frames": [row.num_frames for row in rows],
            "num_audio_samples": [row.num_audio_samples for row in rows],
            "source_sample_rate_hz": [row.source_sample_rate_hz for row in rows],
            "source_num_channels": [row.source_num_channels for row in rows],
            "segments": [[_segment(part) for part in row.segments] for row in rows],
        }
        if self._format.adaptive:
            columns["num_acoustic_codebooks"] = [_num_codebooks(row) for row in rows]
        if self._format.semantic:
            columns["semantic"] = _ids_column([_present(row.semantic) for row in rows])
        for k in range(self._format.num_acoustic_codebooks):
            columns[f"acoustic_{k}"] = _ids_column([self._codebook(row, k) for row in rows])
        for suffix in self._format.carry:
            columns[suffix] = [_sidecar(row, suffix) for row in rows]
        arrays = [
            column if isinstance(column, pa.Array) else pa.array(column, self._schema.field(name).type)
            for name, column in columns.items()
        ]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))

    def _codebook(self, row: TokenRow, k: int) -> NDArray[np.uint16] | None:
        codebooks = list(_present(row.acoustic))
        return None if self._format.adaptive and k >= len(codebooks) else codebooks[k]


def _segment(segment: Any) -> dict[str, int]:
    return {"start": segment.start, "length": segment.length, "num_frames": segment.num_frames}


def _ids_column(rows: list[NDArray[np.uint16] | None]) -> pa.Array:
    """A list<uint16> column straight from the arrays, without a Python object an id; None becomes null."""
    ids = [np.empty(0, np.uint16) if row is None else row for row in rows]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int32)
    kind = pa.list_(pa.field("element", pa.uint16(), nullable=False))
    is_null = pa.array([row is None for row in rows]) if any(row is None for row in rows) else None
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(ids)), type=kind, mask=is_null)


def _num_codebooks(row: TokenRow) -> int:
    return len(_present(row.acoustic))


def _present(ids: NDArray[np.uint16] | None) -> NDArray[np.uint16]:
    if ids is None:
        raise AssertionError("a row lacks a stream that its format has")
    return ids


def _sidecar(row: TokenRow, suffix: str) -> str | bytes | None:
    content = row.sidecars.get(suffix)
    return content.decode() if content is not None and is_text(suffix) else content


class WebDatasetTokenWriter(TokenWriter):
    """A tar of semantic and one of acoustic tokens: same keys, same order, `<key>.<stream>.npy` + `<key>.json`.

    Carried sidecars stand in the first of the tars under their own suffix; a carried `json` is
    `<key>.source.json`, since `<key>.json` holds the row's numbers.
    """

    def __init__(self, spool: Spool, token_format: TokenFormat) -> None:
        self._format = token_format
        streams = ["semantic"] if token_format.semantic else []
        streams += ["acoustic"] if token_format.num_acoustic_codebooks else []
        self._tars = {
            stream: tarfile.open(fileobj=spool.file(stream), mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
            for stream in streams
        }
        for tar in self._tars.values():
            spool.closes(tar)

    def write(self, rows: Iterable[TokenRow]) -> None:
        """Add rows; each goes to disk at once."""
        for row in rows:
            for index, (stream, tar) in enumerate(self._tars.items()):
                ids = _present(row.semantic if stream == "semantic" else row.acoustic)
                add_member(tar, f"{row.key}.{stream}.npy", _npy(ids))
                add_member(tar, f"{row.key}.json", self._numbers(row))
                if index == 0:
                    for suffix in self._format.carry:
                        if suffix in row.sidecars:
                            name = "source.json" if suffix == "json" else suffix
                            add_member(tar, f"{row.key}.{name}", row.sidecars[suffix])

    def close(self) -> None:
        """Write the end of the archives."""
        for tar in self._tars.values():
            tar.close()

    def _numbers(self, row: TokenRow) -> bytes:
        numbers = {
            "key": row.key,
            "num_frames": row.num_frames,
            "num_audio_samples": row.num_audio_samples,
            "source_sample_rate_hz": row.source_sample_rate_hz,
            "source_num_channels": row.source_num_channels,
            "segments": [_segment(part) for part in row.segments],
            **({"num_acoustic_codebooks": _num_codebooks(row)} if self._format.adaptive else {}),
            **self._format.metadata,
        }
        return json.dumps(numbers, ensure_ascii=False).encode()


def _npy(array: NDArray[np.uint16]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Append a member without time or owner, so that a tar's bytes follow from its members."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = 0o644
    tar.addfile(member, io.BytesIO(content))


REJECTS_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("member", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
    ]
)


class RejectWriter:
    """The samples put aside, in shard order; no file when there is none."""

    def __init__(self, spool: Spool, metadata: Mapping[str, str]) -> None:
        self._spool = spool
        self._schema = REJECTS_SCHEMA.with_metadata(dict(metadata))
        self._writer: pq.ParquetWriter | None = None
        self._rows: list[Reject] = []

    def write(self, reject: Reject) -> None:
        """Add one; memory holds a few thousand."""
        self._rows.append(reject)
        if len(self._rows) >= 4096:
            self._flush()

    def close(self) -> None:
        """Write the last rows and the footer."""
        if self._rows:
            self._flush()
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._spool.file("rejects"), self._schema, compression="zstd")
            self._spool.closes(self._writer)
        rows, self._rows = self._rows, []
        columns = [
            [row.key for row in rows],
            [row.member for row in rows],
            [row.reason.value for row in rows],
            [row.detail for row in rows],
            [row.num_bytes for row in rows],
        ]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))


def open_token_writer(kind: str, spool: Spool, token_format: TokenFormat) -> TokenWriter:
    """The writer of a format (`parquet` or `webdataset`)."""
    return ParquetTokenWriter(spool, token_format) if kind == "parquet" else WebDatasetTokenWriter(spool, token_format)
