"""The manifest's rows: columns that behave as a dict of records, and a stored table of which nothing is believed."""

from __future__ import annotations

import io
import math
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from infra.bench.fleet import Fleet, FleetConfig, drive, job_config
from infra.bench.stores import PAGE_KEYS, CountedStore, MemoryStore
from jobs.prepare import open_job
from pipeline import manifest_rows
from pipeline.layout import OutputPlace
from pipeline.manifest import Manifest, load_manifest, write_manifest
from pipeline.manifest_rows import ManifestRow, Rows, sum_counts
from pipeline.records import CommitRecord, Counts, InputRecord, ObjectRecord

OWN, OTHER = "f" * 64, "0" * 64
IDS = [f"shard-{n}-00000000" for n in range(9)]
BASE = "s3://simulated"


def row_of(shard_id: str, number: int, fingerprint: str = OWN) -> ManifestRow:
    counts = Counts(
        num_samples=number + 2,
        num_rows=number,
        num_rejected=2,
        rejects={"empty": 1, f"reason-{number % 2}": 1},
        num_frames=number,
        num_audio_samples=960 * number,
        audio_s=number / 4,
        carried={"txt": number} if number else {},
        num_frames_by_codebooks={1: number, 12: 3} if number % 3 else {},
    )
    objects = [ObjectRecord(path=f"tokens/{shard_id}.{number}.{n}", num_bytes=n, sha256="a") for n in range(number % 3)]
    record = CommitRecord(
        shard_id=shard_id,
        term=number % 4,
        fingerprint=fingerprint,
        input=InputRecord(uri=f"/in/{shard_id}.tar", size_bytes=number, etag=f"in-{number}"),
        attempt=f"attempt-{number}",
        objects=tuple(objects),
        counts=counts,
        num_halved_batches=number,
    )
    return ManifestRow(record, f"etag-{number}")


class RowsMachine(RuleBasedStateMachine):
    """Whatever is put in, replaced, taken out and tied up: the rows are those of a dict."""

    def __init__(self):
        super().__init__()
        self.rows, self.expected = Rows(OWN), {}
        self.before, manifest_rows.LOOSE_MAX = manifest_rows.LOOSE_MAX, 3

    @rule(shard_id=st.sampled_from(IDS), number=st.integers(0, 99), is_own=st.booleans())
    def put(self, shard_id, number, is_own):
        self.rows[shard_id] = self.expected[shard_id] = row_of(shard_id, number, OWN if is_own else OTHER)

    @rule(shard_id=st.sampled_from(IDS))
    def drop(self, shard_id):
        assert self.rows.pop(shard_id, None) == self.expected.pop(shard_id, None)

    @rule(data=st.data())
    def keep(self, data):
        kept = data.draw(st.lists(st.sampled_from(sorted(self.expected)), unique=True)) if self.expected else []
        before, self.rows = self.rows, self.rows.only(kept)
        assert dict(before) == self.expected, "the others' rows are left alone"
        self.expected = {shard_id: self.expected[shard_id] for shard_id in kept}

    @rule()
    def put_in_order(self):
        assert self.rows.in_order()["attempt"].to_pylist() == [
            row.record.attempt
            for _, row in sorted(self.expected.items(), key=lambda item: (item[1].record.fingerprint != OWN, item[0]))
        ]

    @rule(shard_ids=st.sets(st.sampled_from(IDS)))
    def ask(self, shard_ids):
        records = {shard_id: row.record for shard_id, row in self.expected.items()}
        there = [records[shard_id].counts for shard_id in shard_ids & records.keys()]
        assert self.rows.sum_counts(shard_ids) == sum_counts(there)
        assert self.rows.commits() == {i: (row.record.term, row.commit_etag) for i, row in self.expected.items()}
        assert self.rows.input_etags() == {i: record.input.etag for i, record in records.items()}
        assert self.rows.object_paths() == {item.path for record in records.values() for item in record.objects}
        assert set(self.rows.strange()) == {i for i, record in records.items() if record.fingerprint != OWN}

    @invariant()
    def the_same_as_a_dict(self):
        assert len(self.rows) == len(self.expected)
        assert dict(self.rows) == self.expected
        assert all((shard_id in self.rows) == (shard_id in self.expected) for shard_id in IDS)

    def teardown(self):
        manifest_rows.LOOSE_MAX = self.before


TestRowsMachine = RowsMachine.TestCase
TestRowsMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def changed(column: str, value: object) -> pa.Table:
    """A good table of three rows, but for one value."""
    rows = Rows(OWN)
    for number, shard_id in enumerate(IDS[:3]):
        rows[shard_id] = row_of(shard_id, number)
    table = rows.in_order()
    values = table[column].to_pylist()
    values[1] = value
    index = table.schema.get_field_index(column)
    return table.set_column(index, table.schema.field(column), pa.array(values, table.schema.field(column).type))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("attempt", None),
        ("objects", None),
        ("objects", [None]),
        ("objects", [{"path": None, "num_bytes": 1, "sha256": "a"}]),
        ("rejects", [{"name": "empty", "count": None}]),
        ("audio_s", math.nan),
        ("audio_s", math.inf),
        ("term", -1),
        ("num_frames_by_codebooks", [{"name": "two", "count": 1}]),
    ],
)
def test_a_stored_manifest_with_a_value_that_no_commit_has_is_ignored(column, value):
    store, place = MemoryStore(), OutputPlace(f"{BASE}/out")
    whole = Rows(OWN)
    whole[IDS[0]] = row_of(IDS[0], 1)
    write_manifest(store, place, Manifest(OWN, whole))
    assert dict(load_manifest(store, place, OWN).rows) == dict(whole)
    metadata = pq.ParquetFile(io.BytesIO(store.read(place.manifest, bytes_max=1 << 20))).schema_arrow.metadata
    sink = io.BytesIO()
    pq.write_table(changed(column, value).replace_schema_metadata(metadata), sink)
    store.put(place.manifest, sink.getvalue())
    assert len(load_manifest(store, place, OWN).rows) == 0


def test_a_manifest_of_before_clips_chose_their_codebooks_is_read():
    store, place = MemoryStore(), OutputPlace(f"{BASE}/out")
    whole = Rows(OWN)
    for number in (0, 3):  # of fixed numbers
        whole[IDS[number]] = row_of(IDS[number], number)
    write_manifest(store, place, Manifest(OWN, whole))
    before = pq.ParquetFile(io.BytesIO(store.read(place.manifest, bytes_max=1 << 20))).read()
    sink = io.BytesIO()
    pq.write_table(before.drop_columns(["num_frames_by_codebooks"]), sink)
    store.put(place.manifest, sink.getvalue())
    assert dict(load_manifest(store, place, OWN).rows) == dict(whole)


def test_a_resume_reads_pages_of_names_and_the_manifest_and_no_commit():
    """However many shards are committed: the requests of a start grow by two listings' pages alone."""
    num_shards = 2 * PAGE_KEYS + 500
    memory = MemoryStore()
    for number in range(num_shards):
        memory.put(f"{BASE}/in/shard-{number:05d}.tar", b"", 1000)
    config = job_config(BASE)
    assert drive(Fleet(FleetConfig(num_replicas=9)), config, memory).report.exit_code == 0
    memory.put(f"{BASE}/in/shard-new.tar", b"", 1000)
    store = CountedStore(memory, BASE)
    job = open_job(config, "cpu", stores=lambda _: store)
    assert [shard.uri for shard in job.todo] == [f"{BASE}/in/shard-new.tar"]
    probes = [name for name in store.requests if ".probe" in name]
    asked = Counter({name: count for name, count in store.requests.items() if name not in probes})
    assert asked == {
        "list in": 3,
        "list out/commits": 3,
        "list out/failures": 1,
        "put_if_absent out/job.json": 1,
        "read out/job.json": 1,
        "read out/manifest.parquet": 1,
    }
    assert len(probes) == 2
