"""Committed tokens read back: both formats alike, nothing uncommitted, nothing damaged, keys without the ids."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jobs.redo import redo
from jobs.run import run_job
from pipeline.config import load_config
from pipeline.errors import DataError, ObjectChangedError, ObjectMissingError, RefusedError
from pipeline.settings import RetryConfig, StorageConfig
from pipeline.token_keys import find_keys
from pipeline.token_reader import TokenReader
from tests.corpus import CLIPS, put_shards, speech_shards, texts, tokens_of

ENVIRONMENT = StorageConfig(), RetryConfig(attempts_max=2, backoff_s=0.01)


def make_tokens(folder: Path, **changes) -> str:
    inputs = put_shards(f"{folder}/in", speech_shards())
    values = {"input": inputs, "output": f"{folder}/out", "codec": "calibrated:", "executor": "inline",
              "carry": ["txt"], "decoding": {"workers": 1}, **changes}  # fmt: skip
    assert run_job(load_config(values), plain=True).exit_code == 0
    return f"{folder}/out"


def reader(output: str) -> TokenReader:
    return TokenReader.open(output, *ENVIRONMENT)


@pytest.mark.parametrize("changes", [{}, {"streams": ["semantic"]}, {"streams": ["acoustic"]}], ids=str)
def test_both_formats_give_the_rows_that_were_written(tmp_path, changes):
    found = []
    for kind in ("parquet", "webdataset"):
        output = make_tokens(tmp_path / kind, format=kind, **changes)
        rows = list(reader(output).rows())
        words = texts()
        assert {row.key: row.sidecars for row in rows} == {key: {"txt": words[key].encode()} for key in words}
        found.append(rows)
    for left, right in zip(*found, strict=True):
        for name in ("key", "num_frames", "num_audio_samples", "source_sample_rate_hz", "segments", "sidecars"):
            assert getattr(left, name) == getattr(right, name), name
        for name in ("semantic", "acoustic"):
            pair = getattr(left, name), getattr(right, name)
            assert (pair[0] is None) == (pair[1] is None) == (name not in changes.get("streams", name))
            assert pair[0] is None or np.array_equal(*pair)
    if not changes:
        true = tokens_of(output)
        assert {row.key: (row.semantic.tolist(), row.acoustic.tolist()) for row in rows} == true


@pytest.fixture(params=["parquet", "webdataset"])
def output(request, tmp_path) -> str:
    return make_tokens(tmp_path, format=request.param)


def test_only_committed_rows_are_seen_and_a_shard_is_known_by_its_content(output):
    tokens = reader(output)
    before = tokens.shards()
    assert len(before) == 3
    (Path(output) / "tokens").mkdir(exist_ok=True)
    (Path(output) / "tokens" / f"x-00000000.{'0' * 32}.parquet").write_bytes(b"an orphan")
    assert tokens.shards() == before
    taken = before[0].uri.rpartition("/")[2]
    redo(output, [taken], *ENVIRONMENT)
    assert tokens.shards() == before[1:]
    with pytest.raises(ObjectMissingError, match="no commit stands there"):
        list(tokens.read(before[0]))
    config = json.loads((Path(output) / "job.json").read_text())["config"]
    assert run_job(load_config(config), plain=True).num_committed_now == 1
    assert tokens.shards() == before, "made anew under other names, the same tokens are the same input"
    assert len(list(tokens.rows())) == len(CLIPS)


def test_damage_is_named_with_its_object_and_what_mends_it(output):
    tokens = reader(output)
    shard = tokens.shards()[1]
    shard_id = shard.uri.rpartition("/")[2]
    (victim, *_) = sorted(Path(output).glob(f"[ts]*/{shard_id}.*"))
    whole = victim.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    for content, says in ((bytes(damaged), "has sha256"), (whole[:-1], "bytes, its commit says"), (None, "cannot")):
        victim.unlink() if content is None else victim.write_bytes(content)
        with pytest.raises(DataError, match=says) as error:
            list(tokens.read(shard))
        assert victim.name in str(error.value)
        assert f"voxmill redo {output} {shard_id}" in str(error.value)
    victim.write_bytes(whole)
    other = shard.__class__(shard.uri, shard.size_bytes, "another")
    with pytest.raises(ObjectChangedError):
        list(tokens.read(other))


def test_a_place_that_is_no_job_or_whose_record_was_changed_is_refused(output, tmp_path):
    with pytest.raises(RefusedError, match="holds no voxmill job"):
        reader(f"{tmp_path}/elsewhere")
    job = Path(output) / "job.json"
    record = json.loads(job.read_text())
    job.write_text(json.dumps(record | {"parts": record["parts"] | {"streams": ["semantic"]}}))
    with pytest.raises(RefusedError, match="was changed"):
        reader(output)


def test_keys_are_found_in_every_shard_that_holds_them(output):
    tokens = reader(output)
    stems = [clip.stem for clip in CLIPS]
    found = find_keys(tokens, [stems[0], stems[4], "nope"])
    by_key = {key: [record.input.uri.rpartition("/")[2] for record in records] for key, records in found.items()}
    assert by_key == {stems[0]: ["speech-000.tar"], stems[4]: ["speech-001.tar"], "nope": []}


def test_the_search_for_keys_reads_the_key_column_alone(tmp_path, monkeypatch):
    """Of a shard so large that its footer and its keys are a small part of it."""
    output = make_tokens(tmp_path, codec="calibrated:frame_size=2")
    tokens = reader(output)
    num_bytes = []
    whole = tokens.store.read_range

    def counted(uri, start, end, *, etag):
        num_bytes.append(end - start)
        return whole(uri, start, end, etag=etag)

    monkeypatch.setattr(tokens.store, "read_range", counted)
    found = find_keys(tokens, [CLIPS[0].stem])
    assert [len(records) for records in found.values()] == [1]
    assert sum(num_bytes) < 0.25 * sum(shard.size_bytes for shard in tokens.shards())
