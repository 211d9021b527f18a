"""A run end to end, on real speech and the golden checkpoint: every executor, every store, both formats."""

from __future__ import annotations

import gc
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from jobs.run import run_job
from jobs.verify import verify
from pipeline.config import load_config
from pipeline.errors import OtherJobError, RefusedError
from pipeline.settings import RetryConfig, StorageConfig
from tests.corpus import CLIPS, GOLDEN, committed_hashes, put_shards, speech_shards, store_of, tar_of, texts, tokens_of

EXECUTORS = {"inline": ("inline", "auto"), "ray-1": ("ray", 1), "ray-3": ("ray", 3)}
FAST = {
    "decoding": {"workers": 1},
    "retry": {"attempts_max": 3, "backoff_s": 0.05},
    "running": {"tick_s": 0.05, "retry_backoff_s": 0.05},
}


def settings(inputs, output, **changes):
    return {"input": inputs, "output": output, "codec": str(GOLDEN), "carry": ["txt"], **FAST, **changes}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The tokens by key of a fault-free inline run, and the hashes of its objects."""
    folder = tmp_path_factory.mktemp("reference")
    inputs = put_shards(str(folder / "in"), speech_shards())
    output = str(folder / "out")
    report = run_job(load_config(settings(inputs, output, executor="inline")), plain=True)
    assert report.exit_code == 0
    assert report.counts.num_rows == len(CLIPS)
    return tokens_of(output), committed_hashes(output)


@pytest.fixture(params=["local", "s3"])
def base(request, tmp_path):
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


@pytest.mark.parametrize("executor", EXECUTORS)
def test_every_executor_and_store_writes_the_same_bytes(executor, base, reference, request):
    if executor != "inline":
        request.getfixturevalue("local_ray")
    name, replicas = EXECUTORS[executor]
    inputs = put_shards(f"{base}/in", speech_shards())
    config = load_config(settings(inputs, f"{base}/out", executor=name, replicas=replicas))
    report = run_job(config, plain=True)
    assert report.exit_code == 0, report.lines()
    assert committed_hashes(f"{base}/out") == reference[1]
    checked = verify(f"{base}/out", StorageConfig(), RetryConfig())
    assert checked.lines()[1:] == []
    assert checked.num_rows == len(CLIPS)


def test_the_tokens_are_those_of_each_clip_encoded_alone(reference):
    import torch

    from codec.registry import load_codec

    codec = load_codec(str(GOLDEN))
    for clip in CLIPS:
        waveform, rate_hz = soundfile.read(clip, dtype="float32")
        assert rate_hz == codec.info.sample_rate_hz
        alone = codec.encode(torch.from_numpy(waveform)[None], torch.tensor([len(waveform)]))
        semantic, acoustic = reference[0][clip.stem]
        assert alone.semantic[0].tolist() == semantic
        assert alone.acoustic[0].tolist() == acoustic


def test_both_formats_hold_the_same_tokens(tmp_path, reference):
    inputs = put_shards(str(tmp_path / "in"), speech_shards())
    output = str(tmp_path / "out")
    assert (
        run_job(load_config(settings(inputs, output, executor="inline", format="webdataset")), plain=True).exit_code
        == 0
    )
    assert tokens_of(output) == reference[0]
    checked = verify(output, StorageConfig(), RetryConfig())
    assert checked.lines()[1:] == []


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves its files to the collector
def test_outputs_load_with_pyarrow_datasets_and_webdataset(tmp_path, reference):
    import datasets
    import webdataset

    inputs = put_shards(str(tmp_path / "in"), speech_shards())
    run_job(load_config(settings(inputs, str(tmp_path / "pq"), executor="inline")), plain=True)
    run_job(load_config(settings(inputs, str(tmp_path / "wds"), executor="inline", format="webdataset")), plain=True)

    table = pq.read_table(tmp_path / "pq" / "tokens")
    assert dict(zip(table["key"].to_pylist(), table["txt"].to_pylist(), strict=True)) == texts()

    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "pq" / "tokens" / "*.parquet"), cache_dir=str(tmp_path / "cache")
    )["train"]
    assert {row["key"]: row["semantic"] for row in loaded} == {key: ids[0] for key, ids in reference[0].items()}

    for stream, index in (("semantic", 0), ("acoustic", 1)):
        urls = [str(path) for path in sorted((tmp_path / "wds" / stream).glob("*.tar"))]
        samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
        assert {s["__key__"]: s[f"{stream}.npy"].tolist() for s in samples} == {
            key: ids[index] for key, ids in reference[0].items()
        }
        assert all(s["json"]["num_frames"] == s[f"{stream}.npy"].shape[-1] for s in samples)
    gc.collect()  # here, where the warning is allowed


def test_semantics_alone_are_read_without_fetching_acoustic_bytes(tmp_path):
    """Of a shard so large that reading its footer does not fetch it whole; counted at the file that pyarrow reads."""
    rng = np.random.default_rng(0)
    members = []
    for n in range(20):
        buffer = io.BytesIO()
        soundfile.write(buffer, rng.integers(-20000, 20000, 16000 * 60).astype(np.int16), 16000, format="WAV")
        members.append((f"c{n:02d}.wav", buffer.getvalue()))
    inputs = put_shards(str(tmp_path / "in"), {"long.tar": tar_of(members)})
    values = settings(inputs, str(tmp_path / "out"), executor="inline", codec="calibrated:frame_size=160")
    run_job(load_config(values), plain=True)
    (shard,) = (tmp_path / "out" / "tokens").glob("*.parquet")

    class Counting(io.FileIO):
        num_bytes = 0

        def read(self, size=-1):
            content = super().read(size)
            Counting.num_bytes += len(content)
            return content

    with Counting(shard) as file:
        table = pq.ParquetFile(file).read(columns=["key", "semantic"])
    assert table.num_rows == 20
    size_bytes = shard.stat().st_size
    assert size_bytes > 500_000
    assert Counting.num_bytes < 0.4 * size_bytes, "one of four streams was asked for"


def test_running_again_does_nothing_and_says_so(tmp_path, reference):
    inputs = put_shards(str(tmp_path / "in"), speech_shards())
    config = load_config(settings(inputs, str(tmp_path / "out"), executor="inline"))
    assert run_job(config, plain=True).num_committed_now == 3
    again = run_job(config, plain=True)
    assert (again.exit_code, again.num_committed_now, again.num_committed) == (0, 0, 3)
    assert committed_hashes(str(tmp_path / "out")) == reference[1]


def test_new_inputs_join_and_a_lost_manifest_is_rebuilt(tmp_path, reference):
    shards = speech_shards()
    put_shards(str(tmp_path / "in"), {"speech-000.tar": shards.pop("speech-000.tar")})
    config = load_config(settings([f"{tmp_path}/in/"], str(tmp_path / "out"), executor="inline"))
    assert run_job(config, plain=True).num_committed_now == 1
    put_shards(str(tmp_path / "in"), shards)
    (tmp_path / "out" / "manifest.parquet").unlink()
    assert run_job(config, plain=True).num_committed_now == 2
    assert committed_hashes(str(tmp_path / "out")) == reference[1]
    assert pq.read_table(tmp_path / "out" / "manifest.parquet")["num_rows"].to_pylist() == [4, 3, 3]


def test_a_changed_input_is_refused_by_name_and_redone_when_told(tmp_path, reference):
    shards = speech_shards()
    inputs = put_shards(str(tmp_path / "in"), shards)
    values = settings(inputs, str(tmp_path / "out"), executor="inline")
    run_job(load_config(values), plain=True)
    put_shards(str(tmp_path / "in"), {"speech-001.tar": shards["speech-002.tar"]})
    with pytest.raises(RefusedError, match=r"speech-001\.tar.*--redo-changed"):
        run_job(load_config(values), plain=True)
    report = run_job(load_config(values | {"redo_changed": True}), plain=True)
    assert (report.exit_code, report.num_committed_now) == (0, 1)
    hashes = committed_hashes(str(tmp_path / "out"))
    assert hashes["speech-001.tar"] == reference[1]["speech-002.tar"]
    assert len(list((tmp_path / "out" / "tokens").glob("*"))) == 3, "the old version's tokens are gone"


def test_another_job_in_the_place_is_refused_with_the_difference(tmp_path):
    inputs = put_shards(str(tmp_path / "in"), speech_shards())
    values = settings(inputs, str(tmp_path / "out"), executor="inline")
    run_job(load_config(values), plain=True)
    with pytest.raises(OtherJobError, match=r"batching\.batch_s: there 60\.0, here 50\.0") as refused:
        run_job(load_config(values | {"batching": {"batch_s": 50}}), plain=True)
    assert "codec.checkpoint_hash" not in str(refused.value)
    with pytest.raises(OtherJobError, match=r"codec\.checkpoint_hash"):
        run_job(load_config(values | {"codec": "calibrated:"}), plain=True)
    tampered = json.loads((tmp_path / "out" / "job.json").read_text())
    (tmp_path / "out" / "job.json").write_text(json.dumps(tampered | {"format_version": 0}))
    with pytest.raises(OtherJobError, match="format version 0"):
        run_job(load_config(values), plain=True)


def test_semantics_alone_store_semantics_alone(tmp_path, reference):
    inputs = put_shards(str(tmp_path / "in"), speech_shards())
    values = settings(inputs, str(tmp_path / "out"), executor="inline", streams=["semantic"])
    assert run_job(load_config(values), plain=True).exit_code == 0
    table = pq.read_table(tmp_path / "out" / "tokens")
    assert [name for name in table.column_names if name.startswith("acoustic")] == []
    assert dict(zip(table["key"].to_pylist(), table["semantic"].to_pylist(), strict=True)) == {
        key: ids[0] for key, ids in reference[0].items()
    }
    assert verify(str(tmp_path / "out"), StorageConfig(), RetryConfig()).sound


def test_fewer_codebooks_are_the_first_ones(tmp_path, reference):
    inputs = put_shards(str(tmp_path / "in"), speech_shards())
    values = settings(inputs, str(tmp_path / "out"), executor="inline", num_acoustic_codebooks=1)
    assert run_job(load_config(values), plain=True).exit_code == 0
    assert tokens_of(str(tmp_path / "out")) == {key: (s, a[:1]) for key, (s, a) in reference[0].items()}


def test_orphans_of_committed_shards_are_swept_and_strays_are_not(tmp_path):
    inputs = put_shards(str(tmp_path / "in"), speech_shards())
    config = load_config(settings(inputs, str(tmp_path / "out"), executor="inline"))
    run_job(config, plain=True)
    store, folder = store_of(str(tmp_path)), tmp_path / "out" / "tokens"
    (committed, *_) = folder.glob("*.parquet")
    orphan = committed.with_name(committed.name.split(".")[0] + f".{'0' * 32}.parquet")
    store.put(str(orphan), b"left by a killed attempt")
    store.put(f"{folder}/mine.txt", b"somebody's")
    checked = verify(str(tmp_path / "out"), StorageConfig(), RetryConfig())
    assert (checked.sound, len(checked.orphans), checked.strays) == (True, 1, ["tokens/mine.txt"])
    run_job(config, plain=True)
    assert not orphan.exists()
    assert (folder / "mine.txt").exists()
