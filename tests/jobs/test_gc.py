"""`voxmill gc`: what never will be committed goes, everything else stays, and the next run is none the worse."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from jobs.gc import GcReport, collect_garbage
from jobs.redo import redo
from jobs.run import run_job
from jobs.verify import verify
from pipeline.commit import commit, find_standing, put_objects
from pipeline.config import load_config
from pipeline.errors import AttemptFencedError, RefusedError, UnsafeStoreError
from pipeline.job import read_job
from pipeline.layout import OutputPlace
from pipeline.records import CommitRecord, Counts, InputRecord
from pipeline.settings import RetryConfig, StorageConfig
from pipeline.spool import Spool
from pipeline.storage import join
from pipeline.types import Shard
from tests import servers
from tests.corpus import committed_hashes, put_shards, speech_shards, store_of

DAY_S = 86400.0
SETTINGS = {"codec": "calibrated:", "executor": "inline", "decoding": {"workers": 1}}


@pytest.fixture(params=["local", "s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


@pytest.fixture
def inputs(base: str) -> list[str]:
    return put_shards(f"{base}/in", speech_shards(2))


def run(base: str, inputs: list[str]) -> None:
    config = load_config({**SETTINGS, "input": inputs, "output": f"{base}/out"})
    assert run_job(config, plain=True).exit_code == 0


def gc(base: str, *, days: float = 2.0, dry_run: bool = False) -> GcReport:
    """The command, so many days from now."""
    return collect_garbage(
        f"{base}/out",
        StorageConfig(),
        RetryConfig(attempts_max=2, backoff_s=0.01),
        grace_s=DAY_S,
        dry_run=dry_run,
        clock=lambda: time.time() + days * DAY_S,
    )


def left_attempt(base: str, uri: str, name: str = "d" * 32) -> CommitRecord:
    """What an attempt leaves that is killed just before its commit."""
    store, place, shard = store_of(base), OutputPlace(f"{base}/out"), Shard(uri, 5, "e")
    standing = find_standing(store, place, shard.shard_id)
    with Spool() as spool:
        for folder in ("tokens", "rejects"):
            spool.file(folder).write(b"half a day's work")
        objects = put_objects(store, place, shard.shard_id, name, spool.finished())
    return CommitRecord(
        shard_id=shard.shard_id,
        term=standing.term,
        fingerprint=read_job(store, place).fingerprint,
        input=InputRecord.of(shard),
        attempt=name,
        objects=objects,
        counts=Counts(num_samples=0, num_rows=0, num_rejected=0, num_frames=0, num_audio_samples=0, audio_s=0.0),
    )


def listing(base: str) -> set[str]:
    return {info.uri.removeprefix(f"{base}/out/") for info in store_of(base).list(f"{base}/out")}


def test_what_no_commit_names_goes_and_what_one_names_stays(base, inputs):
    run(base, inputs)
    before, kept = committed_hashes(f"{base}/out"), listing(base)
    loser = left_attempt(base, inputs[0])
    orphan = left_attempt(base, join(base, "in/elsewhere.tar"))
    store_of(base).put(f"{base}/out/tokens/mine.txt", b"somebody's")
    store_of(base).put(f"{base}/out/.probe-{'0' * 32}", b"of a process that died")
    everything = listing(base)
    objects = {item.path for record in (loser, orphan) for item in record.objects}

    assert gc(base, days=0.5).orphans == []
    report = gc(base, dry_run=True)
    assert listing(base) == everything
    assert set(report.orphans) == objects
    assert report.fenced == [orphan.shard_id]

    report = gc(base)
    assert set(report.orphans) == objects
    assert (report.fenced, report.probes) == ([orphan.shard_id], [f".probe-{'0' * 32}"])
    assert listing(base) == kept | {"tokens/mine.txt", f"commits/{orphan.shard_id}.json"}
    assert committed_hashes(f"{base}/out") == before
    assert verify(f"{base}/out", StorageConfig(), RetryConfig()).sound
    again = gc(base)
    assert (again.orphans, again.fenced, again.probes) == ([], [], [])


def test_who_wakes_up_after_it_cannot_commit_and_the_next_run_can(base, inputs):
    run(base, inputs[:1])
    sleeper = left_attempt(base, inputs[1])
    gc(base)
    with pytest.raises(AttemptFencedError):
        commit(store_of(base), OutputPlace(f"{base}/out"), sleeper)
    run(base, inputs)
    store, place = store_of(base), OutputPlace(f"{base}/out")
    assert find_standing(store, place, sleeper.shard_id).term == 1
    checked = verify(f"{base}/out", StorageConfig(), RetryConfig())
    assert (checked.sound, checked.num_shards, checked.orphans) == (True, 2, [])


def test_a_shard_that_somebody_is_at_is_left_alone(tmp_path):
    """One of its objects is young: a fence now would cost that attempt its work."""
    base = str(tmp_path)
    inputs = put_shards(f"{base}/in", speech_shards(2))
    run(base, inputs[:1])
    old = left_attempt(base, inputs[1])
    young = left_attempt(base, inputs[1], "e" * 32)
    for item in old.objects:
        os.utime(Path(base, "out", item.path), (time.time() - 3 * DAY_S,) * 2)
    report = gc(base, days=0)
    assert (report.kept, report.orphans) == ([young.shard_id], [])
    assert commit(store_of(base), OutputPlace(f"{base}/out"), young).ours


def test_writes_that_never_ended_go(base, inputs):
    run(base, inputs)
    before = listing(base)
    if base.startswith("s3://"):
        client = store_of(base)
        created = client._retried("create_multipart_upload", base, {"Bucket": base[5:], "Key": "out/tokens/x.parquet"})
        assert created["UploadId"]
    else:
        Path(base, "out", "tokens", ".tmp-0123").write_bytes(b"half")
        assert gc(base, days=0.5).partial == []  # for the other store moto says 2010
    assert len(gc(base).partial) == 1
    assert gc(base).partial == []
    assert listing(base) == before


def test_a_place_without_a_job_is_refused(tmp_path):
    with pytest.raises(RefusedError, match="holds no voxmill job"):
        gc(str(tmp_path))


def test_a_store_where_a_fence_would_not_hold_is_refused(tmp_path, monkeypatch):
    with servers.rclone_server(tmp_path) as server:
        (tmp_path / "bucket").mkdir()
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        base = "s3://bucket"
        inputs = put_shards(f"{base}/in", speech_shards(2))
        config = load_config({**SETTINGS, "input": inputs, "output": f"{base}/out", "allow_unsafe_store": True})
        assert run_job(config, plain=True).exit_code == 0
        left_attempt(base, inputs[0])
        before = listing(base)
        with pytest.raises(UnsafeStoreError):
            gc(base)
        assert listing(base) == before


def test_a_shard_that_is_taken_back_is_done_anew_and_no_other(base, inputs):
    run(base, inputs)
    store, place = store_of(base), OutputPlace(f"{base}/out")
    first, second = (Shard(uri, 0, "").shard_id for uri in inputs)
    before = {shard_id: find_standing(store, place, shard_id) for shard_id in (first, second)}
    with pytest.raises(RefusedError, match="nothing-00000000: no commit stands"):
        redo(f"{base}/out", [first, "nothing-00000000"], StorageConfig(), RetryConfig())
    assert find_standing(store, place, first) == before[first], "refused before anything is changed"
    redo(f"{base}/out", [first], StorageConfig(), RetryConfig())
    run(base, inputs)
    after = find_standing(store, place, first)
    assert (after.term, find_standing(store, place, second)) == (1, before[second])
    assert after.record.attempt != before[first].record.attempt
    assert verify(f"{base}/out", StorageConfig(), RetryConfig()).sound
