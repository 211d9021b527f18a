"""Tokens back to audio, end to end: every executor, both formats of tokens, jobs and single keys, errors as met."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jobs import cli
from jobs.decode import decode_job
from jobs.gc import collect_garbage
from jobs.redo import redo
from jobs.run import run_job
from jobs.verify import verify
from pipeline import synthesis_worker
from pipeline.audio_config import load_decode_config
from pipeline.config import load_config
from pipeline.errors import OtherJobError, RefusedError
from pipeline.settings import RetryConfig, StorageConfig
from pipeline.synthesizer import num_samples_at
from pipeline.token_reader import TokenReader
from tests.codec.golden import Expected
from tests.corpus import CLIPS, GOLDEN, committed_hashes, put_shards, speech_shards, store_of, tar_of, texts
from tests.faults.ground import lab
from tests.faults.saboteurs import noted, sabotage
from tests.jobs.test_cli import voxmill
from tests.pipeline.test_synthesizer import DECODINGS, STEP

ENVIRONMENT = StorageConfig(), RetryConfig(attempts_max=2, backoff_s=0.01)
FAST = {"retry": {"attempts_max": 3, "backoff_s": 0.05}, "running": {"tick_s": 0.05, "retry_backoff_s": 0.05}}
LIMIT_S = 100.0
"""For a process that decodes two shards; it takes some seconds where nobody else computes."""

REFERENCE_CLIPS = ("16k_mono", "16k_short_350ms", "22k_mono")


def make_tokens(base: str, shards=None, **changes) -> str:
    inputs = put_shards(f"{base}/shards", shards or speech_shards())
    values = {"input": inputs, "output": f"{base}/in", "codec": str(GOLDEN), "executor": "inline", "carry": ["txt"],
              "decoding": {"workers": 1}, **FAST, **changes}  # fmt: skip
    assert run_job(load_config(values), plain=True).exit_code == 0
    return f"{base}/in"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> str:
    """The ten clips' tokens, in parquet."""
    return make_tokens(str(tmp_path_factory.mktemp("tokens")))


def settings(tokens, output, **changes):
    return {"tokens": tokens, "output": str(output), "sample_rate_hz": 24000, "executor": "inline", **FAST, **changes}


def decode(tokens, output, **changes):
    report = decode_job(load_decode_config(settings(tokens, output, **changes)), plain=True)
    assert report.exit_code == 0, report.lines()
    return report


def samples_of(output: str) -> dict[str, dict[str, bytes]]:
    """Members by key and suffix of all audio shards, from a plain listing."""
    found: dict[str, dict[str, bytes]] = {}
    store = store_of(str(output))
    for info in store.list(f"{output}/audio"):
        with tarfile.open(fileobj=io.BytesIO(store.read(info.uri, bytes_max=1 << 30))) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                assert suffix not in found.setdefault(key, {}), f"{member.name} stands twice"
                found[key][suffix] = tar.extractfile(member).read()
    return found


def pcm_of(content: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(content), dtype="int16")[0].astype(int)


def hashes(output: str) -> list[list[str]]:
    """Hashes of each committed shard's objects, in the order of shards: inputs may stand in several folders."""
    return sorted(committed_hashes(str(output)).values())


@pytest.fixture(scope="module")
def reference(tokens, tmp_path_factory):
    """What an inline decoding makes."""
    output = tmp_path_factory.mktemp("audio") / "out"
    report = decode(tokens, output)
    assert report.counts.num_rows == len(CLIPS)
    return samples_of(output), hashes(output)


def test_every_clip_comes_back_in_its_own_length_with_its_text_and_numbers(tokens, reference):
    assert set(reference[0]) == {clip.stem for clip in CLIPS}
    for clip in CLIPS:
        members = reference[0][clip.stem]
        assert members.keys() == {"flac", "json", "txt"}
        info, true = soundfile.info(io.BytesIO(members["flac"])), soundfile.info(clip)
        assert (info.samplerate, info.channels, info.subtype) == (24000, 1, "PCM_16")
        assert info.frames == num_samples_at(true.frames, true.samplerate, 24000)
        assert members["txt"].decode() == texts()[clip.stem]
        numbers = json.loads(members["json"])
        assert (numbers["num_samples"], numbers["source_sample_rate_hz"]) == (info.frames, 16000)
        assert (numbers["semantic_codebooks"], numbers["acoustic_codebooks"]) == (1, 3)
        assert numbers["voxmill.decoder"] == "24k_4codebooks"


@pytest.mark.parametrize("decoding", DECODINGS)
def test_golden_clips_come_back_as_the_reference_decodes_them(tmp_path_factory, tmp_path, decoding, golden_tokens):
    expected = Expected(GOLDEN / "expected.npz")
    sample_rate_hz, num_codebooks = DECODINGS[decoding]
    decode(golden_tokens, tmp_path / "out", sample_rate_hz=sample_rate_hz, num_acoustic_codebooks=num_codebooks)
    found = samples_of(tmp_path / "out")
    for clip in REFERENCE_CLIPS:
        true = expected[f"{clip}/{decoding}"].numpy()
        samples = pcm_of(found[f"clip_{clip}"]["flac"]) / 32768
        assert len(samples) == num_samples_at(len(expected[f"{clip}/wav16k"]), 16000, sample_rate_hz)
        assert np.abs(samples - true[: len(samples)]).max() <= 1e-4 * np.abs(true).max() + 0.51 * STEP


@pytest.fixture(scope="module")
def golden_tokens(tmp_path_factory) -> str:
    shard = tar_of((f"clip_{clip}.flac", (GOLDEN / f"clip_{clip}.flac").read_bytes()) for clip in REFERENCE_CLIPS)
    return make_tokens(str(tmp_path_factory.mktemp("golden")), {"golden.tar": shard}, carry=[])


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("replicas", [1, 3])
def test_every_executor_writes_the_same_bytes(tokens, reference, tmp_path, replicas):
    decode(tokens, tmp_path / "out", executor="ray", replicas=replicas)
    assert hashes(tmp_path / "out") == reference[1]


def test_object_storage_holds_the_same_bytes_and_tars_of_tokens_give_the_same_audio(reference, bucket):
    tokens = make_tokens(bucket, format="webdataset")
    decode(tokens, f"{bucket}/out")
    found = samples_of(f"{bucket}/out")
    assert {key: (one["flac"], one["txt"]) for key, one in found.items()} == {
        key: (one["flac"], one["txt"]) for key, one in reference[0].items()
    }
    assert verify(f"{bucket}/out", *ENVIRONMENT).lines()[1:] == []


def test_semantics_alone_at_both_rates(tokens, reference, tmp_path):
    for rate_hz in (16000, 24000):
        decode(tokens, tmp_path / str(rate_hz), sample_rate_hz=rate_hz, streams="semantic")
        found = samples_of(tmp_path / str(rate_hz))
        assert found.keys() == reference[0].keys()
        assert all(np.abs(pcm_of(one["flac"])).max() > 50 for one in found.values())
    both = {key: pcm_of(one["flac"]) for key, one in reference[0].items()}
    assert all(np.abs(pcm_of(one["flac"]) - both[key]).max() > 50 for key, one in found.items())


def test_long_clips_are_decoded_segment_by_segment(tmp_path):
    """A clip of three segments sounds like the tokens of each segment decoded as a clip of its own."""
    waveform = np.concatenate([soundfile.read(clip, dtype="int16")[0] for clip in CLIPS])[: 16000 * 15 + 77]
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, 16000, format="FLAC")
    shards = {"long.tar": tar_of([("long.flac", buffer.getvalue())])}
    tokens = make_tokens(str(tmp_path), shards, carry=[], batching={"segment_s": 6, "segment_search_s": 1})
    (row,) = TokenReader.open(tokens, *ENVIRONMENT).rows()
    assert len(row.segments) == 3
    decode(tokens, tmp_path / "out", sample_rate_hz=16000)
    whole = pcm_of(samples_of(tmp_path / "out")["long"]["flac"])
    assert len(whole) == len(waveform)
    import torch

    from codec.base import Tokens
    from codec.registry import load_codec

    codec, first = load_codec(str(GOLDEN)), 0
    for segment in row.segments:
        frames = slice(first, first + segment.num_frames)
        semantic, acoustic = (
            torch.from_numpy(ids[..., frames].astype(np.int64))[None] for ids in (row.semantic, row.acoustic)
        )
        alone = codec.decode(Tokens(semantic, acoustic, torch.tensor([segment.num_frames])), 16000)[0].numpy()
        own = whole[segment.start : segment.start + segment.length]
        assert np.abs(own / 32768 - alone[: segment.length]).max() <= 1.01 * STEP
        first += segment.num_frames


def test_files_are_one_a_key_and_hold_the_same_audio(tokens, reference, tmp_path):
    decode(tokens, tmp_path / "out", format="files", audio="wav")
    paths = {path.stem: path for path in (tmp_path / "out" / "audio").rglob("*") if path.is_file()}
    assert {path.suffix for path in paths.values()} == {".wav"}
    assert paths.keys() == reference[0].keys()
    for key, path in paths.items():
        assert np.array_equal(pcm_of(path.read_bytes()), pcm_of(reference[0][key]["flac"]))
    checked = verify(str(tmp_path / "out"), *ENVIRONMENT)
    assert (checked.lines()[1:], checked.num_objects) == ([], len(CLIPS))
    swept = collect_garbage(str(tmp_path / "out"), *ENVIRONMENT, grace_s=0, dry_run=False, clock=lambda: 4e9)
    assert (swept.orphans, swept.fenced) == ([], [])
    assert all(path.exists() for path in paths.values())


def test_what_dead_attempts_left_is_swept_and_what_is_damaged_is_found(tokens, reference, tmp_path):
    output = tmp_path / "out"
    decode(tokens, output, format="files")
    (some, *_) = (output / "commits").glob("*.json")
    orphan = output / "audio" / f"{some.stem}.{'0' * 32}" / "left.flac"
    store_of(str(output)).put(str(orphan), b"left")
    assert [Path(path).name for path in verify(str(output), *ENVIRONMENT).orphans] == ["left.flac"]
    assert decode(tokens, output, format="files").num_committed_now == 0
    assert not orphan.exists()
    victim = next(path for path in (output / "audio").rglob("*.flac"))
    victim.write_bytes(victim.read_bytes()[:-1])
    (fault,) = verify(str(output), *ENVIRONMENT).faults
    assert victim.name in fault
    redo(str(output), [victim.parent.name.split(".")[0]], *ENVIRONMENT)
    assert decode(tokens, output, format="files").num_committed_now == 1
    assert verify(str(output), *ENVIRONMENT).sound


def test_verify_reads_audio_and_numbers_again(tokens, tmp_path):
    decode(tokens, tmp_path / "out")
    commits = sorted((tmp_path / "out" / "commits").glob("*.json"))
    record = json.loads(commits[0].read_text())
    edited = record | {"counts": record["counts"] | {"num_rows": 77, "num_frames": 1, "audio_s": 1.0}}
    commits[0].write_text(json.dumps(edited))
    (tar,) = (tmp_path / "out" / "audio").glob(f"{commits[1].stem}.*.tar")
    content = bytearray(tar.read_bytes())
    content[content.index(b"fLaC") + 5000] ^= 1
    tar.write_bytes(bytes(content))
    faults = "\n".join(verify(str(tmp_path / "out"), *ENVIRONMENT).faults)
    for expected in ("num_rows is", "num_frames is", "audio_s is", "has sha256"):
        assert expected in faults


def test_new_tokens_join_and_changed_ones_are_refused_by_name_until_told(tmp_path):
    shards = speech_shards()
    first = {"speech-000.tar": shards["speech-000.tar"]}
    tokens = make_tokens(str(tmp_path), first)
    assert decode(tokens, tmp_path / "out").num_committed_now == 1
    put_shards(f"{tmp_path}/shards", {name: content for name, content in shards.items() if name not in first})
    inputs = [f"{tmp_path}/shards/{name}" for name in shards]
    values = json.loads((tmp_path / "in" / "job.json").read_text())["config"] | {"input": inputs}
    run_job(load_config(values), plain=True)
    assert decode(tokens, tmp_path / "out").num_committed_now == 2
    put_shards(f"{tmp_path}/shards", {"speech-001.tar": shards["speech-002.tar"]})
    run_job(load_config(values | {"redo_changed": True}), plain=True)
    with pytest.raises(RefusedError, match=r"speech-001-\w+.*--redo-changed"):
        decode(tokens, tmp_path / "out")
    assert decode(tokens, tmp_path / "out", redo_changed=True).num_committed_now == 1
    assert len(list((tmp_path / "out" / "audio").iterdir())) == 3, "the old version's audio is gone"


def test_another_decoding_in_the_place_is_refused_with_the_difference(tokens, tmp_path):
    decode(tokens, tmp_path / "out")
    with pytest.raises(OtherJobError, match=r"decoder\.name: there '24k_4codebooks', here '24k_2codebooks'") as refused:
        decode(tokens, tmp_path / "out", num_acoustic_codebooks=1)
    assert "source.fingerprint" not in str(refused.value)
    assert decode(tokens, tmp_path / "out", running={"tick_s": 0.1}).num_committed_now == 0


def test_a_damaged_token_shard_fails_by_name_and_the_rest_goes_on(tmp_path):
    tokens = make_tokens(str(tmp_path))
    (victim, *_) = sorted((tmp_path / "in" / "tokens").glob("*.parquet"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(bytes(content))
    done = voxmill("decode", tokens, "--to=24000", f"--out={tmp_path}/out", *FLAGS, "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["state"], report["num_committed"]) == (1, "incomplete", 2)
    ((_, why),) = report["failed"].items()
    assert victim.name in why
    assert "DataError" in why
    assert len(list((tmp_path / "out" / "failures").rglob("*.json"))) == 2, "a data error is tried twice"
    shard_id = victim.name.rsplit(".", 2)[0]
    assert f"voxmill redo {tokens} {shard_id}" in why
    assert "--retry-failed" in why
    redo(tokens, [shard_id], *ENVIRONMENT)
    make_tokens(str(tmp_path), redo_changed=True)  # it puts the inputs there anew
    assert decode(tokens, tmp_path / "out", retry_failed=True).counts.num_rows == len(CLIPS)


FLAGS = ("--executor=inline", "--set=running.tick_s=0.05", "--set=running.retry_backoff_s=0.01")


def test_the_command_says_which_decoder_it_took_and_why_and_how_the_job_stands(tokens, tmp_path):
    done = voxmill("decode", tokens, "--to=24000", "--num-acoustic-codebooks=1", f"--out={tmp_path}/out", *FLAGS)
    assert done.returncode == 0, done.stderr
    assert "to 24000 Hz by decoder 24k_2codebooks: made for exactly so many" in done.stderr
    assert "complete: 3 of 3" in done.stdout
    status = voxmill("status", tmp_path / "out")
    assert f"decodes    {tokens} by decoder 24k_2codebooks to 24000 Hz" in status.stdout
    done = voxmill("decode", tokens, "--to=16000", "--num-acoustic-codebooks=2", f"--out={tmp_path}/b", *FLAGS)
    assert "decoder 16k_4codebooks: none is made for exactly so many" in done.stderr


def test_tokens_whose_job_is_not_complete_are_decoded_as_far_as_they_are_and_that_is_said(tmp_path):
    tokens = make_tokens(str(tmp_path), {"speech-000.tar": speech_shards()["speech-000.tar"]})
    status = tmp_path / "in" / "status.json"
    record = json.loads(status.read_text()) | {"state": "running", "num_shards": 3}
    for content, says in ((json.dumps(record), "is not complete (running: 1 of 3 shards)"), ("{", "has no status")):
        status.write_text(content)
        done = voxmill("decode", tokens, "--to=24000", f"--out={tmp_path}/out", *FLAGS)
        assert (done.returncode, says in done.stderr) == (0, True), done.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--to=22050"], r"no decoder for 22050 Hz; this checkpoint decodes to \[16000, 24000\] Hz"),
        (["--to=24000", "--num-acoustic-codebooks=4"], "is 4, the tokens of .* have semantic and 3 acoustic codebooks"),
        (["--to=24000", "--streams=semantic", "--num-acoustic-codebooks=1"], "streams has no 'acoustic'"),
        (["--to=24000", "--streams=melodic"], "streams"),
        (["--to=24000", "--codec=calibrated:"], "its ids are hashes"),
        (["--to=24000", "--set=batching.no=1"], "no such setting"),
    ],
)
def test_what_cannot_be_decoded_is_refused_with_what_there_is(tokens, tmp_path, flags, says):
    done = voxmill("decode", tokens, f"--out={tmp_path}/out", *FLAGS, *flags)
    assert done.returncode == 2
    import re

    assert re.search(says, done.stderr), done.stderr
    assert not (tmp_path / "out").exists()


def test_tokens_that_lack_a_stream_or_a_place_are_refused(tmp_path):
    tokens = make_tokens(str(tmp_path), streams=["semantic"])
    done = voxmill("decode", tokens, "--to=24000", "--streams=semantic,acoustic", f"--out={tmp_path}/out", *FLAGS)
    assert (done.returncode, "have semantic" in done.stderr) == (2, True)
    decode(tokens, tmp_path / "audio")
    for place, out, says in (
        (tmp_path / "audio", "b", "of a job that made audio"),
        (tmp_path / "none", "b", "holds no voxmill job"),
        (tokens, "in/audio", "are in one another"),
        (tokens, ".", "are in one another"),
    ):
        done = voxmill("decode", place, "--to=24000", f"--out={tmp_path}/{out}", *FLAGS)
        assert (done.returncode, says in done.stderr) == (2, True), done.stderr


def test_another_checkpoint_than_the_tokens_is_refused(tokens, tmp_path):
    import shutil

    other = shutil.copytree(GOLDEN, tmp_path / "other")
    statistics = other / "LongCatAudioCodec_encoder_cmvn.npy"
    np.save(statistics, np.load(statistics) * 2)
    done = voxmill("decode", tokens, "--to=24000", f"--out={tmp_path}/out", f"--codec={other}", *FLAGS)
    assert done.returncode == 2
    assert "name the codec that made them" in done.stderr


def test_a_few_keys_are_files_at_once_and_unknown_ones_are_named(tokens, reference, tmp_path):
    stems = [CLIPS[0].stem, CLIPS[5].stem]
    listed = tmp_path / "keys.txt"
    listed.write_text("\n".join([stems[1], "", stems[0], stems[1]]))
    done = voxmill("decode", tokens, "--to=24000", f"--out={tmp_path}/out", f"--keys=@{listed}", "--json")
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["files"]) == [stems[1], stems[0]]
    found = {path.stem: pcm_of(path.read_bytes()) for path in (tmp_path / "out").iterdir()}
    assert found.keys() == set(stems), "no record of a job beside them"
    for key, samples in found.items():
        assert np.abs(samples - pcm_of(reference[0][key]["flac"])).max() <= 1

    done = voxmill("decode", tokens, "--to=16000", f"--out={tmp_path}/b", f"--keys={stems[0]},nope,../x", "--audio=wav")
    assert done.returncode == 1
    assert "unknown: no committed shard holds the key 'nope'" in done.stdout
    assert "'../x'" in done.stdout
    assert [path.name for path in (tmp_path / "b").iterdir()] == [f"{stems[0]}.wav"]
    assert voxmill("decode", tokens, "--to=16000", f"--out={tmp_path}/c", "--keys=,").returncode == 2
    assert voxmill("decode", tokens, "--to=16000", f"--out={tmp_path}/c", "--keys=@nofile").returncode == 2


def test_a_key_of_several_shards_is_named_and_not_guessed(tmp_path):
    content = CLIPS[0].read_bytes()
    tokens = make_tokens(
        str(tmp_path),
        {f"{name}.tar": tar_of([("same.flac", content), (f"{name}.flac", content)]) for name in "ab"},
        carry=[],
    )
    done = voxmill("decode", tokens, "--to=16000", f"--out={tmp_path}/out", "--keys=same,a")
    assert done.returncode == 1
    assert "'same' stands in 2 shards" in done.stdout
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.flac"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["shards", "files"])
def test_killed_at_every_call_to_the_store_the_same_command_completes(tokens, tmp_path, kind):
    """SIGKILL right before and right after each call that writes, one process after the other."""
    one = make_tokens(
        str(tmp_path / "one"), {"s.tar": tar_of((clip.name, clip.read_bytes()) for clip in CLIPS[:2])}, carry=[]
    )
    decode(one, tmp_path / "whole", format=kind)
    command = ["decode", one, "--to=24000", f"--out={tmp_path}/out", f"--format={kind}", *FLAGS,
               "--set=running.status_every_s=3600", "--json"]  # fmt: skip
    notes, committed = tmp_path / "notes", {}
    kills = sabotage("at_store_calls", notes, only=r"\w+ (put\w*|delete) out.*", signal_name="SIGKILL")
    with lab(tmp_path) as processes:
        for number in range(1, 100):
            ended = processes.start(command, {}, kills).wait(LIMIT_S)
            if ended.exit_code == 0:
                break
            assert ended.exit_code == -9, ended.stderr
            assert len(noted(notes)) == number
            now = {path.name: path.read_bytes() for path in (tmp_path / "out" / "commits").glob("*.json")}
            assert now.items() >= committed.items(), "what was committed stands"
            committed = now
    calls = {step.split()[1] + " " + step.split()[2].split("/")[1] for step in noted(notes)}
    put = "put audio" if kind == "files" else "put_file audio"
    assert calls >= {"put_if_absent job.json", put, "put_if_absent commits", "put manifest.parquet"}
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
    checked = verify(str(tmp_path / "out"), *ENVIRONMENT)
    assert (checked.faults, checked.orphans) == ([], [])


def test_two_drivers_on_one_decoding_make_one_commit_a_shard(tokens, reference, tmp_path):
    command = ["decode", tokens, "--to=24000", f"--out={tmp_path}/out", *FLAGS, "--json"]
    with lab(tmp_path) as processes:
        both = [processes.start(command, {}) for _ in range(2)]
        ended = [one.wait(LIMIT_S) for one in both]
    assert [one.exit_code for one in ended] == [0, 0], [one.stderr for one in ended]
    assert sum(one.report["num_committed_now"] for one in ended) == 3
    assert hashes(tmp_path / "out") == reference[1]
    assert len(list((tmp_path / "out" / "audio").iterdir())) == 3


@pytest.mark.parametrize("kind", ["shards", "files"])
def test_an_attempt_that_gc_meets_between_its_objects_and_its_commit_is_fenced_off(tokens, tmp_path, monkeypatch, kind):
    put, swept = synthesis_worker._put, []

    def put_then_collect(*args):
        objects = put(*args)
        if not swept:
            swept.append(
                collect_garbage(str(tmp_path / "out"), *ENVIRONMENT, grace_s=0, dry_run=False, clock=lambda: 4e9)
            )
        return objects

    monkeypatch.setattr("pipeline.synthesis_worker._put", put_then_collect)
    decode(tokens, tmp_path / "out", format=kind)
    assert swept[0].orphans
    errors = [json.loads(path.read_text())["error"] for path in (tmp_path / "out" / "failures").rglob("*.json")]
    assert set(errors) == {"AttemptFencedError"}
    checked = verify(str(tmp_path / "out"), *ENVIRONMENT)
    assert (checked.faults, checked.orphans, checked.num_rows) == ([], [], len(CLIPS))


@pytest.mark.parametrize(
    "flag", ["--replicas=2", "--executor=ray", "--format=files", "--ray-address=a:1", "--redo-changed"]
)
def test_flags_of_a_job_are_refused_beside_keys(flag, tmp_path, capsys):
    command = ["decode", str(tmp_path / "tokens"), "--to=16000", f"--out={tmp_path / 'out'}", "--keys=a", flag]
    assert cli.main(command) == 2
    assert f"leave out {flag.partition('=')[0]}" in capsys.readouterr().err


def test_tokens_that_moved_are_the_same_tokens(tmp_path):
    tokens = make_tokens(str(tmp_path))
    decode(tokens, tmp_path / "out")
    before = committed_hashes(str(tmp_path / "out"))
    Path(tokens).rename(tmp_path / "moved")
    assert decode(str(tmp_path / "moved"), tmp_path / "out").counts.num_rows == len(CLIPS)
    assert committed_hashes(str(tmp_path / "out")) == before
    assert len(samples_of(str(tmp_path / "out"))) == len(CLIPS)


def test_a_key_of_a_folder_with_a_dot_is_no_sidecar_of_the_key_before(tmp_path):
    audio = CLIPS[0].read_bytes()
    members = [(name, audio) for name in ("a.flac", "a.d/b.flac", "c.flac")]
    tokens = make_tokens(str(tmp_path), {"odd.tar": tar_of(members)})
    decode(tokens, tmp_path / "out")
    checked = verify(str(tmp_path / "out"), *ENVIRONMENT)
    assert (checked.faults, checked.num_rows) == ([], 3)


def test_a_job_record_that_lies_about_its_codec_is_not_believed(tmp_path):
    tokens = make_tokens(str(tmp_path))
    path = Path(tokens) / "job.json"
    record = json.loads(path.read_text())
    record["codec"]["checkpoint_hash"] = "0" * 64
    path.write_text(json.dumps(record))
    decode(tokens, tmp_path / "out")  # what the fingerprint covers is right, and counts


def test_keys_are_not_written_among_the_tokens(tokens, capsys):
    for out in (tokens, f"{tokens}/audio"):
        assert cli.main(["decode", tokens, "--to=16000", f"--out={out}", "--keys=a"]) == 2
        assert "are in one another; name another output" in capsys.readouterr().err
