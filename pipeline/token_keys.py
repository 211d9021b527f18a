"""Which committed token shard holds a key, found by the key column alone."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pyarrow.parquet as pq

from pipeline.errors import DataError
from pipeline.fetch import fetch_object
from pipeline.records import CommitRecord, ObjectRecord
from pipeline.spool import Spool
from pipeline.storage import Store
from pipeline.token_reader import TokenReader
from pipeline.token_rows import READ_ERRORS

SHARDS_IN_FLIGHT = 16
"""Looked at at once."""


def find_keys(reader: TokenReader, keys: Iterable[str]) -> dict[str, list[CommitRecord]]:
    """The commits whose shards hold each of these keys; none for a key that no shard holds.

    Of a parquet shard only the footer and the key column are read, by ranges, of tars the first one whole. Every shard
    is looked at, since a key may stand in several. Raises `DataError` naming an object that cannot be read.
    """
    wanted = set(keys)
    found: dict[str, list[CommitRecord]] = {key: [] for key in wanted}
    rows = reader.manifest().rows
    records = (rows[shard_id].record for shard_id in sorted(rows))
    with ThreadPoolExecutor(SHARDS_IN_FLIGHT, thread_name_prefix="keys") as pool:
        while some := list(islice(records, SHARDS_IN_FLIGHT)):
            for record, held in zip(
                some, pool.map(lambda one: wanted.intersection(_keys(reader, one)), some), strict=True
            ):
                for key in held:
                    found[key].append(record)
    return found


def _keys(reader: TokenReader, record: CommitRecord) -> Sequence[str]:
    folder = "tokens" if reader.job.parts["format"] == "parquet" else reader.rules.streams[0]
    item = next((item for item in record.objects if item.path.startswith(f"{folder}/")), None)
    if item is None:
        raise DataError(f"the commit of {record.shard_id} names no object in {folder}/")
    uri = reader.place.uri(item.path)
    try:
        if folder == "tokens":
            file = io.BufferedReader(_RangeFile(reader.store, uri, item.num_bytes), 1 << 16)
            keys: list[str] = pq.ParquetFile(file).read(columns=["key"], use_threads=False)["key"].to_pylist()
            return keys
        return list(_tar_keys(reader.store, uri, item, f".{folder}.npy"))
    except (*READ_ERRORS, OSError) as error:
        raise DataError(f"{uri}: its keys cannot be read: {type(error).__name__}: {error}") from error


def _tar_keys(store: Store, uri: str, item: ObjectRecord, suffix: str) -> Iterator[str]:
    with Spool() as spool:
        file = spool.file("keys")
        fault = fetch_object(store, uri, item, file)
        if fault:
            raise DataError(f"{uri}: {fault}")
        with tarfile.open(fileobj=file, mode="r:") as tar:
            yield from (member.name.removesuffix(suffix) for member in tar if member.name.endswith(suffix))


class _RangeFile(io.RawIOBase):
    """An object as a file that is read by ranges."""

    def __init__(self, store: Store, uri: str, size_bytes: int) -> None:
        super().__init__()
        self._store = store
        self._uri = uri
        self._size_bytes = size_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        end = min(self._size_bytes, self._position + len(buffer))
        if end <= self._position:
            return 0
        content = self._store.read_range(self._uri, self._position, end, etag=None)
        buffer[: len(content)] = content
        self._position = end
        return len(content)
