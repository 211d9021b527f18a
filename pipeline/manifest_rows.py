"""The rows of a manifest in Arrow's columns; a record is made of one only when somebody asks for it.

A million commit records as objects would fill several GB of a driver; as columns they take some hundred MB, and what is
asked of all rows at once (their ETags, sums, paths) is read from its column alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.records import CommitRecord, Counts, InputRecord, ObjectRecord

LOOSE_MAX = 4096
"""New rows are kept as records until there are so many; then they become columns."""

_OBJECT = pa.struct([("path", pa.string()), ("num_bytes", pa.int64()), ("sha256", pa.string())])
_COUNTS = pa.list_(pa.struct([("name", pa.string()), ("count", pa.int64())]))
SCHEMA = pa.schema(
    [
        ("shard_id", pa.string()),
        ("term", pa.int32()),
        ("input_uri", pa.string()),
        ("input_size_bytes", pa.int64()),
        ("input_etag", pa.string()),
        ("attempt", pa.string()),
        ("objects", pa.list_(_OBJECT)),
        ("num_samples", pa.int64()),
        ("num_rows", pa.int64()),
        ("num_rejected", pa.int64()),
        ("rejects", _COUNTS),
        ("carried", _COUNTS),
        ("num_frames", pa.int64()),
        ("num_audio_samples", pa.int64()),
        ("audio_s", pa.float64()),
        ("num_halved_batches", pa.int64()),
        ("commit_etag", pa.string()),
        ("num_frames_by_codebooks", _COUNTS),
    ]
)
SCHEMA_BEFORE_CODEBOOKS = SCHEMA.remove(len(SCHEMA) - 1)
"""Of a manifest written before clips could choose their codebooks: still read, since a million commits take minutes."""

_NUMBERS = ("num_samples", "num_rows", "num_rejected", "num_frames", "num_audio_samples", "audio_s")
_TABLES = ("rejects", "carried", "num_frames_by_codebooks")


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """A committed shard; `commit_etag` is that of its commit record, so a changed record is seen.

    A row that was stored has no timings and no environment in its record.
    """

    record: CommitRecord
    commit_etag: str


class Rows(MutableMapping[str, ManifestRow]):
    """Rows by shard id, all of one job; those of another fingerprint, which are an error, are kept as records."""

    def __init__(self, fingerprint: str, table: pa.Table | None = None) -> None:
        """Of a table of `SCHEMA`. Raises `ValueError` when it holds what no manifest does, however it came there."""
        self._fingerprint = fingerprint
        self._table = SCHEMA.empty_table() if table is None else _checked(table)
        self._places = {shard_id: place for place, shard_id in enumerate(self._table["shard_id"].to_pylist())}
        self._loose: dict[str, ManifestRow] = {}
        self._num_loose_own = 0

    def __getitem__(self, shard_id: str) -> ManifestRow:
        """One row; makes its record. Raises `KeyError`."""
        loose = self._loose.get(shard_id)
        return loose if loose is not None else self._row(self._places[shard_id])

    def __setitem__(self, shard_id: str, row: ManifestRow) -> None:
        """Add a row, or replace it."""
        self.pop(shard_id, None)
        self._loose[shard_id] = row
        self._num_loose_own += row.record.fingerprint == self._fingerprint
        if self._num_loose_own >= LOOSE_MAX:
            self._tie_up()

    def __delitem__(self, shard_id: str) -> None:
        """Take a row away. Raises `KeyError`."""
        loose = self._loose.pop(shard_id, None)
        if loose is None:
            del self._places[shard_id]
        else:
            self._num_loose_own -= loose.record.fingerprint == self._fingerprint

    def __contains__(self, shard_id: object) -> bool:
        """Whether there is a row; makes none."""
        return shard_id in self._places or shard_id in self._loose

    def __iter__(self) -> Iterator[str]:
        """Shard ids."""
        yield from self._places
        yield from self._loose

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._places) + len(self._loose)

    def only(self, shard_ids: Iterable[str]) -> Rows:
        """These rows alone, which must be there; the columns are shared."""
        rows = Rows(self._fingerprint)
        rows._table = self._table
        for shard_id in shard_ids:
            loose = self._loose.get(shard_id)
            if loose is None:
                rows._places[shard_id] = self._places[shard_id]
            else:
                rows[shard_id] = loose
        return rows

    def strange(self) -> list[str]:
        """Shards whose commit is of another fingerprint."""
        return [shard_id for shard_id, row in self._loose.items() if row.record.fingerprint != self._fingerprint]

    def commits(self) -> dict[str, tuple[int, str]]:
        """(term, ETag) of each commit record."""
        terms, etags = self._table["term"].to_pylist(), self._table["commit_etag"].to_pylist()
        found = {shard_id: (terms[place], etags[place]) for shard_id, place in self._places.items()}
        return found | {shard_id: (row.record.term, row.commit_etag) for shard_id, row in self._loose.items()}

    def input_etags(self) -> dict[str, str]:
        """ETag of each input as it was read."""
        etags = self._table["input_etag"].to_pylist()
        found = {shard_id: etags[place] for shard_id, place in self._places.items()}
        return found | {shard_id: row.record.input.etag for shard_id, row in self._loose.items()}

    def num_rows(self) -> dict[str, int]:
        """How many rows of tokens each shard has."""
        numbers = self._table["num_rows"].to_pylist()
        found = {shard_id: numbers[place] for shard_id, place in self._places.items()}
        return found | {shard_id: row.record.counts.num_rows for shard_id, row in self._loose.items()}

    def object_paths(self) -> set[str]:
        """Every object that a row names."""
        objects = self._table["objects"]
        if len(self._places) < len(self._table):
            objects = objects.take(pa.array(self._places.values(), pa.int64()))
        found = {path for chunk in objects.chunks for path in chunk.flatten().field("path").to_pylist()}
        found.update(item.path for row in self._loose.values() for item in row.record.objects)
        return found

    def sum_counts(self, shard_ids: Iterable[str]) -> Counts:
        """The counts of these shards' rows together; shards without a row count nothing."""
        places: list[int] = []
        loose: list[Counts] = []
        for shard_id in shard_ids:
            if shard_id in self._places:
                places.append(self._places[shard_id])
            elif shard_id in self._loose:
                loose.append(self._loose[shard_id].record.counts)
        return sum_counts(
            [_sum_columns(self._table.select([*_NUMBERS, *_TABLES]).take(pa.array(places, pa.int64()))), *loose]
        )

    def in_order(self) -> pa.Table:
        """All rows as a table of `SCHEMA`, by shard id. They are kept so from then on, in place of the old columns."""
        self._tie_up()
        order = [place for _, place in sorted(self._places.items())]
        if order != list(range(len(self._table))):
            self._table = self._table.take(pa.array(order, pa.int64()))
            self._places = {shard_id: place for place, shard_id in enumerate(sorted(self._places))}
        strange = [_flat(self._loose[shard_id]) for shard_id in sorted(self.strange())]
        return pa.concat_tables([self._table, pa.Table.from_pylist(strange, SCHEMA)]) if strange else self._table

    def _tie_up(self) -> None:
        """Make columns of the loose rows of this job."""
        own = {i: row for i, row in self._loose.items() if row.record.fingerprint == self._fingerprint}
        self._places.update(zip(own, range(len(self._table), len(self._table) + len(own)), strict=True))
        fresh = pa.Table.from_pylist([_flat(row) for row in own.values()], SCHEMA)
        self._table = pa.concat_tables([self._table, fresh])
        self._loose = {shard_id: self._loose[shard_id] for shard_id in self.strange()}
        self._num_loose_own = 0

    def _row(self, place: int) -> ManifestRow:
        (flat,) = self._table.slice(place, 1).to_pylist()
        counts = {name: flat[name] for name in _NUMBERS}
        tables = {name: {item["name"]: item["count"] for item in flat[name]} for name in _TABLES}
        record = CommitRecord(
            shard_id=flat["shard_id"],
            term=flat["term"],
            fingerprint=self._fingerprint,
            input=InputRecord(uri=flat["input_uri"], size_bytes=flat["input_size_bytes"], etag=flat["input_etag"]),
            attempt=flat["attempt"],
            objects=tuple(ObjectRecord(**item) for item in flat["objects"]),
            counts=Counts(**counts, **tables),
            num_halved_batches=flat["num_halved_batches"],
        )
        return ManifestRow(record, flat["commit_etag"])


def sum_counts(parts: Iterable[Counts]) -> Counts:
    """Field by field."""
    numbers: dict[str, Any] = dict.fromkeys(_NUMBERS, 0)
    tables: dict[str, Counter[Any]] = {name: Counter() for name in _TABLES}
    for part in parts:
        for name in _NUMBERS:
            numbers[name] += getattr(part, name)
        for name, table in tables.items():
            table.update(getattr(part, name))
    return Counts(**numbers, **{name: dict(sorted(table.items())) for name, table in tables.items()})


def _sum_columns(table: pa.Table) -> Counts:
    numbers = {name: pc.sum(table[name]).as_py() or 0 for name in _NUMBERS}
    return Counts(**numbers, **{name: _sum_by_name(table[name]) for name in _TABLES})


def _sum_by_name(column: pa.ChunkedArray) -> dict[str, int]:
    items = pa.Table.from_batches(
        [pa.RecordBatch.from_struct_array(chunk.flatten()) for chunk in column.chunks], pa.schema(_COUNTS.value_type)
    )
    sums = items.group_by("name", use_threads=False).aggregate([("count", "sum")])
    return dict(zip(sums["name"].to_pylist(), sums["count_sum"].to_pylist(), strict=True))


def _flat(row: ManifestRow) -> dict[str, object]:
    record = row.record
    counts = record.counts
    return {
        "shard_id": record.shard_id,
        "term": record.term,
        "input_uri": record.input.uri,
        "input_size_bytes": record.input.size_bytes,
        "input_etag": record.input.etag,
        "attempt": record.attempt,
        "objects": [{"path": item.path, "num_bytes": item.num_bytes, "sha256": item.sha256} for item in record.objects],
        "num_halved_batches": record.num_halved_batches,
        "commit_etag": row.commit_etag,
        **{name: getattr(counts, name) for name in _NUMBERS},
        **{
            name: [{"name": str(key), "count": count} for key, count in sorted(getattr(counts, name).items())]
            for name in _TABLES
        },
    }


def _checked(table: pa.Table) -> pa.Table:
    """The table, if every row of it can become a record. Raises `ValueError`."""
    table.validate(full=True)
    if table.schema.equals(SCHEMA_BEFORE_CODEBOOKS, check_metadata=False):
        none = pa.array([[]] * len(table), _COUNTS)
        table = table.append_column(SCHEMA.field("num_frames_by_codebooks"), none)
    if not table.schema.equals(SCHEMA, check_metadata=False):
        raise ValueError("a table of other columns")
    if any(_has_null(chunk) for column in table.columns for chunk in column.chunks):
        raise ValueError("a row misses a value")
    if not pc.all(pc.is_finite(table["audio_s"])).as_py() or (pc.min(table["term"]).as_py() or 0) < 0:
        raise ValueError("a number that no commit has")
    numbers = pc.struct_field(pc.list_flatten(table["num_frames_by_codebooks"]), "name")
    if not pc.all(pc.match_substring_regex(numbers, "^[1-9][0-9]{0,4}$"), min_count=0).as_py():
        raise ValueError("a number of codebooks that is none")
    return table.replace_schema_metadata(None)


def _has_null(array: pa.Array) -> bool:
    if array.null_count:
        return True
    if pa.types.is_list(array.type):
        return _has_null(array.flatten())
    if pa.types.is_struct(array.type):
        return any(_has_null(child) for child in array.flatten())
    return False
