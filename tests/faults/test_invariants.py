"""The judge itself: each invariant that is broken on purpose is named."""

from __future__ import annotations

import hashlib
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.faults.invariants import Expected, check, commits


@pytest.fixture
def left(ground):
    """The objects of a fault-free run, and what is expected of them."""
    shards = ground.put_clean(3)
    objects = ground.check(ground.run())
    expected = Expected(
        rows=ground._clean(), hashes=ground.lab.reference(shards, ground.flags), committed=frozenset(shards)
    )
    check(objects, expected)
    return objects, expected


def rewritten(objects, change):
    """The objects with the first token shard's table changed, and a commit that says so."""
    _name, record = next(iter(sorted(commits(objects).items())))
    item = next(item for item in record["objects"] if item["path"].startswith("tokens/"))
    sink = io.BytesIO()
    pq.write_table(change(pq.read_table(io.BytesIO(objects[item["path"]]))), sink)
    content = sink.getvalue()
    item |= {"num_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path = next(
        path
        for path, held in objects.items()
        if path.startswith("commits/") and json.loads(held)["attempt"] == record["attempt"]
    )
    return {**objects, item["path"]: content, path: json.dumps(record).encode()}


def with_column(table, name, values):
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values, table.schema.field(name).type))


def test_a_lost_a_doubled_and_a_changed_row_are_seen(left):
    objects, expected = left
    with pytest.raises(AssertionError, match=r"I1.*lost"):
        check(rewritten(objects, lambda table: table.slice(1)), expected)
    with pytest.raises(AssertionError, match=r"I1.*stands twice"):
        check(rewritten(objects, lambda table: pa.concat_tables([table, table.slice(0, 1)])), expected)

    def change_an_id(table):
        ids = table["acoustic_1"].to_pylist()
        ids[0][3] ^= 1
        return with_column(table, "acoustic_1", ids)

    with pytest.raises(AssertionError, match=r"I6.*other ids"):
        check(rewritten(objects, change_an_id), expected)
    with pytest.raises(AssertionError, match=r"I6.*frames"):
        check(
            rewritten(
                objects,
                lambda t: with_column(t, "num_audio_samples", [n + 960 for n in t["num_audio_samples"].to_pylist()]),
            ),
            expected,
        )
    with pytest.raises(AssertionError, match=r"I2"):
        check(rewritten(objects, lambda table: table), expected)  # the same rows, other bytes


def test_strangers_lies_and_holes_are_seen(left):
    objects, expected = left
    token = next(path for path in objects if path.startswith("tokens/"))
    commit = next(path for path in objects if path.startswith("commits/"))
    with pytest.raises(AssertionError, match=r"I3.*was damaged"):
        check({**objects, token: objects[token][:-1] + bytes([objects[token][-1] ^ 1])}, expected)
    with pytest.raises(AssertionError, match=r"I3.*not there"):
        check({path: held for path, held in objects.items() if path != token}, expected)
    with pytest.raises(AssertionError, match=r"I3.*no commit names"):
        check({**objects, f"tokens/x-00000000.{'0' * 32}.parquet": b""}, expected)
    with pytest.raises(AssertionError, match=r"I3.*committed twice"):
        check({**objects, "commits/other-00000000.json": objects[commit]}, expected)
    with pytest.raises(AssertionError, match=r"I5.*not committed"):
        check({path: held for path, held in objects.items() if path != commit}, expected)
    with pytest.raises(AssertionError, match=r"I3.*nothing that a run leaves"):
        check({**objects, "canary": b""}, expected)


@pytest.mark.parametrize("format_flags", [(), ("--format=webdataset",)], ids=["parquet", "webdataset"])
def test_rows_of_their_own_numbers_of_codebooks_are_judged(ground, format_flags):
    ground.put_clean(3)
    ended = ground.run("--num-acoustic-codebooks=auto:residual=0.3", *format_flags)
    objects = ground.check(ended)
    assert ended.report["counts"]["num_frames_by_codebooks"].keys() == {"1", "2"}
    if format_flags:
        return
    expected = Expected(rows=ground._clean(), committed=frozenset(ground.shards))
    one_more = rewritten(objects, lambda table: with_column(table, "acoustic_2", table["acoustic_0"].to_pylist()))
    with pytest.raises(AssertionError, match=r"I6.*says \d acoustic codebooks"):
        check(one_more, expected)

    def claim_one(table):
        return with_column(table, "num_acoustic_codebooks", [1] * len(table))

    with pytest.raises(AssertionError, match=r"I6.*says 1 acoustic codebooks"):
        check(rewritten(objects, claim_one), expected)
