"""The commands as a person meets them: a clear message of what, where and what to do, and the right exit code."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from jobs.cli import main
from tests import servers
from tests.corpus import CLIPS, GOLDEN, committed_hashes, put_shards, speech_shards, tar_of, tokens_of


class Done(NamedTuple):
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


FAST = [
    "--executor=inline",
    "--set=decoding.workers=1",
    "--set=retry.attempts_max=2",
    "--set=retry.backoff_s=0.01",
    "--set=running.retry_backoff_s=0.01",
    "--set=running.tick_s=0.05",
]


def voxmill(*arguments: object, **environment: str) -> Done:
    """A command in this process, which has everything imported."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            code = main(list(map(str, arguments)))
        except SystemExit as leaving:
            code = int(leaving.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def run(tmp_path, inputs, *flags: object, codec: object = "calibrated:", **environment: str):
    done = voxmill(
        "run", *(f"--input={one}" for one in inputs), f"--output={tmp_path}/out", f"--codec={codec}", *FAST, *flags,
        "--json", **environment,
    )  # fmt: skip
    return done, json.loads(done.stdout) if done.stdout else None


def test_help_of_every_command_names_the_exit_codes():
    assert "whatever the job's state" in voxmill("status", "--help").stdout
    for command in ("demo", "pack", "plan", "run", "decode", "verify", "doctor"):
        done = voxmill(command, "--help")
        assert done.returncode == 0
        assert "3 interrupted" in done.stdout


def test_help_imports_nothing_heavy():
    code = "import sys, jobs.cli; jobs.cli._parser().format_help(); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "numpy", "pyarrow", "pydantic", "rich", "yaml"} & set(eval(done.stdout))


def test_a_corrupt_clip_costs_that_clip_and_is_named(tmp_path):
    good, bad = CLIPS[0].read_bytes(), CLIPS[1].read_bytes()
    inputs = put_shards(
        str(tmp_path / "in"),
        {"a.tar": tar_of([("good.flac", good), ("cut.flac", bad[: len(bad) // 2]), ("no.txt", b"x")])},
    )
    done, report = run(tmp_path, inputs)
    assert done.returncode == 0
    assert report["counts"]["num_rows"] == 1
    assert sum(report["counts"]["rejects"].values()) == 2
    assert report["counts"]["rejects"]["no_audio"] == 1
    assert "samples rejected: 1 no_audio, 1 truncated" in done.stderr
    assert set(tokens_of(f"{tmp_path}/out")) == {"good"}


def test_a_corrupt_tar_fails_that_shard_and_the_rest_goes_on(tmp_path):
    shards = speech_shards()
    shards["speech-001.tar"] = shards["speech-001.tar"][:100_000]
    inputs = put_shards(str(tmp_path / "in"), shards)
    done, report = run(tmp_path, inputs)
    assert done.returncode == 1
    assert report["state"] == "incomplete"
    ((uri, why),) = report["failed"].items()
    assert uri.endswith("speech-001.tar")
    assert "TarError" in why
    assert "offset" in why
    assert len(committed_hashes(f"{tmp_path}/out")) == 2
    assert len(list((tmp_path / "out" / "failures").rglob("*.json"))) == 2, "a data error is tried twice"

    again, report = run(tmp_path, inputs)
    assert again.returncode == 1
    assert "--retry-failed" in next(iter(report["failed"].values()))
    put_shards(str(tmp_path / "in"), {"speech-001.tar": speech_shards()["speech-001.tar"]})
    mended, report = run(tmp_path, inputs)
    assert (mended.returncode, report["num_committed_now"]) == (0, 1), "a changed input is tried again by itself"


def test_a_missing_object_is_named_and_the_rest_is_done(tmp_path):
    inputs = put_shards(str(tmp_path / "in"), speech_shards())
    done, report = run(tmp_path, [*inputs, f"{tmp_path}/in/speech-{{003..004}}.tar"])
    assert done.returncode == 1
    assert report["missing"] == [f"{tmp_path}/in/speech-003.tar", f"{tmp_path}/in/speech-004.tar"]
    assert report["num_committed"] == 3


@pytest.mark.parametrize(
    ("flags", "codec", "expected"),
    [
        ([], "nano-typo", ["nano-typo", "longcat"]),
        ([], "hf://no/such", ["hf://no/such"]),
        (["--set=batching.batchs=3"], "calibrated:", ["batching.batchs", "did you mean 'batch_s'"]),
        (["--num-acoustic-codebooks=4"], "calibrated:", ["num_acoustic_codebooks", "has 3"]),
        (["--precision=float16", "--set=batching.segment_s=31"], "calibrated:", ["segment_s", "at most 30"]),
        (
            ["--set=storage.profile=no-such-profile", "--input=s3://bucket/x.tar"],
            "calibrated:",
            ["ProfileNotFound", "storage.profile"],
        ),
        (["--input=pipe:cat /etc/passwd"], "calibrated:", ["pipe:"]),
        (["--input=s3://key:secret@bucket/a.tar"], "calibrated:", ["credentials"]),
        (["--input=s3://key:se/cret@bucket/a.tar"], "calibrated:", ["credentials"]),
        (["--set=storage.endpoint_url=http://me:secret@host"], "calibrated:", ["credentials"]),
        (["--output=s3:///tokens"], "calibrated:", ["is a variable empty?"]),
        (["--output=/"], "calibrated:", ["output", "no place"]),
        (["--set=batching.window_s=.inf"], "calibrated:", ["batching.window_s"]),
        (["--set=batching.segment_s=0.01"], "calibrated:", ["less than one frame"]),
        (["--carry=source.json"], "calibrated:", ["token shards use themselves"]),
        (["--carry=..txt"], "calibrated:", ["lower-case suffixes"]),
        (["--precision=float16"], GOLDEN, ["float16", "bfloat16"]),
        (["--device=cuda"], "calibrated:", ["no CUDA device"]),
        (["--replicas=3"], "calibrated:", ["the inline executor has one"]),
        (["--executor=ray", "--ray-address=127.0.0.1:9"], "calibrated:", ["no Ray answers at 127.0.0.1:9"]),
        (["--executor=ray", "--ray-address=ray://host:10001"], "calibrated:", ["HOST:PORT"]),
    ],
)
def test_wrong_usage_is_refused_with_what_to_do(tmp_path, flags, codec, expected):
    inputs = put_shards(str(tmp_path / "in"), speech_shards(10))
    done, _ = run(tmp_path, inputs[:1], *flags, codec=codec, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0")
    assert done.returncode == 2, done.stderr
    for part in expected:
        assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr
    assert "cret@" not in done.stderr
    assert not (tmp_path / "out" / "job.json").exists(), "a refused run claims nothing"
    assert not (tmp_path / "out" / "commits").exists()


def test_an_unwritable_output_is_refused(tmp_path):
    inputs = put_shards(str(tmp_path / "in"), speech_shards(10))
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    done = voxmill("run", f"--input={inputs[0]}", f"--output={blocked}/out", "--codec=calibrated:", *FAST)
    assert done.returncode == 2, done.stderr
    assert str(blocked) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_credential_is_refused_without_telling_it(tmp_path):
    """And a store that ignores put-if-absent is refused, until its risk is taken by name."""
    (tmp_path / "served" / "speech").mkdir(parents=True)
    for name, content in speech_shards(10).items():
        (tmp_path / "served" / "speech" / name).write_bytes(content)
    with servers.rclone_server(tmp_path / "served") as server:
        right = server.environment()
        wrong = right | {"AWS_SECRET_ACCESS_KEY": "hunter2-not-the-secret"}
        flags = ["run", "--input=s3://speech/speech-00*.tar", "--output=s3://speech/out", "--codec=calibrated:", *FAST]
        for command in (flags, ["status", "s3://speech/out"], ["verify", "s3://speech/out"]):
            done = voxmill(*command, **wrong)
            assert done.returncode == 2, done.stderr
            assert "StoreDeniedError" in done.stderr
            assert "credentials" in done.stderr
            assert "Traceback" not in done.stderr
            assert "hunter2" not in done.stdout + done.stderr
        refused = voxmill(*flags, **right)
        assert refused.returncode == 2, refused.stderr
        assert "--allow-unsafe-store" in refused.stderr
        taken = voxmill(*flags, "--allow-unsafe-store", **right)
        assert taken.returncode == 0, taken.stderr
        assert "WARNING: unsafe store" in taken.stderr + taken.stdout
        assert "unsafe store" in voxmill("status", "s3://speech/out", **right).stdout


def test_status_and_plan_tell_the_truth(tmp_path):
    inputs = put_shards(str(tmp_path / "in"), speech_shards())
    flags = [f"--input={tmp_path}/in/", f"--output={tmp_path}/out", f"--codec={GOLDEN}"]
    plan = json.loads(voxmill("plan", *flags, "--json").stdout)
    assert (plan["num_shards"], plan["num_committed"], plan["num_codebooks"]) == (3, 0, 4)
    assert plan["estimated_audio_s"] == pytest.approx(34.4, rel=0.1)
    assert not (tmp_path / "out").exists(), "a plan writes nothing"
    assert voxmill("status", f"{tmp_path}/out").returncode == 2
    run(tmp_path, inputs, codec=GOLDEN)
    status = json.loads(voxmill("status", f"{tmp_path}/out", "--json").stdout)
    assert (status["num_commits"], status["last"]["state"]) == (3, "complete")
    assert json.loads(voxmill("plan", *flags, "--json").stdout)["num_committed"] == 3


def test_verify_finds_what_was_done_to_the_objects(tmp_path):
    inputs = put_shards(str(tmp_path / "in"), speech_shards())
    run(tmp_path, inputs)
    assert voxmill("verify", tmp_path / "out").returncode == 0
    flipped, cut, gone = sorted((tmp_path / "out" / "tokens").glob("*.parquet"))
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(bytes(content))
    cut.write_bytes(cut.read_bytes()[:-1])
    gone.unlink()
    done = voxmill("verify", tmp_path / "out", "--json")
    assert done.returncode == 1
    first, second, third = json.loads(done.stdout)["faults"]
    assert "sha256" in first
    assert "bytes, its commit says" in second
    assert gone.name in third


def test_plan_samples_shards_larger_than_its_sample(tmp_path):
    content = CLIPS[0].read_bytes()
    put_shards(
        str(tmp_path / "in"), {"big.tar": tar_of((f"c{n}.flac", content) for n in range(6_000_000 // len(content)))}
    )
    done = voxmill("plan", f"--input={tmp_path}/in/", f"--output={tmp_path}/out", "--codec=calibrated:", "--json")
    assert done.returncode == 0, done.stderr
    num_clips = 6_000_000 // len(content)
    assert json.loads(done.stdout)["estimated_audio_s"] == pytest.approx(
        soundfile.info(CLIPS[0]).duration * num_clips, rel=0.05
    )


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_verify_finds_what_was_done_to_the_records(tmp_path):
    inputs = put_shards(str(tmp_path / "in"), speech_shards())
    run(tmp_path, inputs)
    commits = sorted((tmp_path / "out" / "commits").glob("*.json"))
    first, second, third = (json.loads(path.read_text()) for path in commits)
    edit(commits[0], counts=first["counts"] | {"audio_s": 1.0, "num_rows": 77})
    edit(commits[1], input=second["input"] | {"uri": "/elsewhere.tar"})
    edit(commits[2], objects=third["objects"] * 2)
    done = voxmill("verify", tmp_path / "out", "--json")
    assert done.returncode == 1
    faults = "\n".join(json.loads(done.stdout)["faults"])
    for expected in ("num_rows is 4, its commit says 77", "audio_s is", "/elsewhere.tar", "names an object twice"):
        assert expected in faults
    commits[0].unlink()
    assert "its commit record is gone" in voxmill("verify", tmp_path / "out").stdout
    job = tmp_path / "out" / "job.json"
    edit(job, parts=json.loads(job.read_text())["parts"] | {"streams": ["semantic"]})
    done = voxmill("verify", tmp_path / "out")
    assert done.returncode == 2
    assert "was changed" in done.stderr


def test_damaged_derived_files_stop_nothing_and_decide_nothing(tmp_path):
    """A manifest that lies must never make a run delete what the commits name."""
    inputs = put_shards(str(tmp_path / "in"), speech_shards())
    run(tmp_path, inputs)
    before = committed_hashes(f"{tmp_path}/out")
    manifest = tmp_path / "out" / "manifest.parquet"
    table = pq.read_table(manifest)
    objects = table["objects"].to_pylist()
    for row in objects:
        row[0]["path"] = row[0]["path"].replace("speech", "sqeech")
    column = table.schema.get_field_index("objects")
    pq.write_table(
        table.set_column(column, table.schema.field(column), pa.array(objects, table.schema.field(column).type)),
        manifest,
    )
    assert run(tmp_path, inputs)[0].returncode == 0
    assert committed_hashes(f"{tmp_path}/out") == before
    whole = manifest.read_bytes()
    for position in range(0, len(whole), len(whole) // 40):
        manifest.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        (tmp_path / "out" / "status.json").write_text("{")
        done, _ = run(tmp_path, inputs)
        assert done.returncode == 0, done.stderr
    assert voxmill("status", f"{tmp_path}/out").returncode == 0
    assert committed_hashes(f"{tmp_path}/out") == before
    assert voxmill("verify", f"{tmp_path}/out").returncode == 0


def test_the_program_leaves_with_the_commands_exit_code(tmp_path):
    """A thread of Arrow's, still busy with the manifest, must not abort the process instead: it once did, mostly."""
    inputs = put_shards(str(tmp_path / "in"), speech_shards())
    run(tmp_path, inputs)
    Path(inputs[0]).touch()
    flags = ["run", f"--input={tmp_path}/in/", f"--output={tmp_path}/out", "--codec=calibrated:", *FAST]
    done = subprocess.run([sys.executable, "-m", "jobs.cli", *flags], capture_output=True, text=True, check=False)
    assert (done.returncode, "--redo-changed" in done.stderr) == (2, True)


def test_a_sidecar_that_no_sample_has_is_told(tmp_path):
    inputs = put_shards(str(tmp_path / "in"), speech_shards())
    done, report = run(tmp_path, inputs, "--carry=txt,text")
    assert done.returncode == 0
    assert report["carried_nowhere"] == ["text"]
    assert report["counts"]["carried"] == {"txt": len(CLIPS)}


def test_an_output_below_the_input_is_not_tokenized(tmp_path):
    put_shards(str(tmp_path / "in"), speech_shards())
    command = [
        "run",
        f"--input={tmp_path}/in/",
        f"--output={tmp_path}/in/out",
        "--codec=calibrated:",
        *FAST,
        "--format=webdataset",
    ]
    assert voxmill(*command).returncode == 0
    again = voxmill(*command)
    assert again.returncode == 2
    assert "tokenize its own output" in again.stderr


def test_a_committed_input_may_be_gone_and_orphans_are_told(tmp_path):
    inputs = put_shards(str(tmp_path / "in"), speech_shards())
    run(tmp_path, inputs)
    Path(inputs[0]).unlink()
    done, report = run(tmp_path, inputs)
    assert (done.returncode, report["num_committed"], report["counts"]["num_rows"]) == (0, 3, len(CLIPS))
    orphan = f"tokens/gone-01234567.{'0' * 32}.parquet"
    (tmp_path / "out" / orphan).write_bytes(b"of a shard that is no input any more")
    done, report = run(tmp_path, inputs[1:])
    assert (done.returncode, report["num_committed"], report["orphans"]) == (0, 2, [orphan])


def wait_for(condition, process, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def start_slow_run(tmp_path, *flags: str) -> subprocess.Popen[str]:
    """A run of ten shards of one clip, one batch of a second each."""
    put_shards(str(tmp_path / "in"), speech_shards(10))
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "run", f"--input={tmp_path}/in/", f"--output={tmp_path}/out", *FAST,
         "--codec=calibrated:cost_s=1", *flags],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    commits = tmp_path / "out" / "commits"
    wait_for(lambda: commits.exists() and any(commits.glob("*.json")), process)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains_what_is_under_way_and_leaves_a_resumable_place(tmp_path, number):
    process = start_slow_run(tmp_path)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    assert "Ctrl-C again stops now" in err
    assert "the same command again does the rest" in out
    done = len(committed_hashes(f"{tmp_path}/out"))
    assert 1 <= done < 10
    resumed, report = run(tmp_path, [f"{tmp_path}/in/"])
    assert (resumed.returncode, report["num_committed_now"]) == (0, 10 - done)
    assert len(tokens_of(f"{tmp_path}/out")) == len(CLIPS)


def test_what_does_not_end_within_the_drain_time_is_left_uncommitted(tmp_path):
    process = start_slow_run(tmp_path, "--codec=calibrated:cost_s=6", "--set=running.drain_s=0.2")
    before = len(committed_hashes(f"{tmp_path}/out"))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    assert out.startswith("interrupted")
    assert len(committed_hashes(f"{tmp_path}/out")) <= before + 1, "one may have been at its commit"


def test_a_second_ctrl_c_stops_now(tmp_path):
    process = start_slow_run(tmp_path, "--codec=calibrated:cost_s=5", "--set=running.drain_s=80")
    process.send_signal(signal.SIGINT)
    wait_for(lambda: "Ctrl-C again" in process.stderr.readline(), process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 3


@pytest.mark.timeout(200)
def test_two_drivers_at_once_make_one_commit_a_shard_and_both_tell_the_truth(tmp_path):
    inputs = put_shards(str(tmp_path / "in"), speech_shards(5))
    places = [*(f"--input={one}" for one in inputs), f"--output={tmp_path}/out"]
    command = [sys.executable, "-m", "jobs.cli", "run", *places, "--codec=calibrated:cost_s=0.3", *FAST, "--json"]
    pair = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    reports = []
    for process in pair:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        reports.append(json.loads(out))
    assert [report["state"] for report in reports] == ["complete", "complete"]
    assert all(report["num_committed"] == 5 for report in reports)
    assert len(committed_hashes(f"{tmp_path}/out")) == 5
    assert len(tokens_of(f"{tmp_path}/out")) == len(CLIPS)
    assert Path(tmp_path / "out" / "job.json").exists()


def test_a_name_in_a_bucket_does_nothing_to_the_terminal(tmp_path):
    (tmp_path / "\x1b[2J\u202erat.tar").write_bytes(b"no tar")
    done, _ = run(tmp_path, [f"{tmp_path}/"])
    assert done.returncode == 1
    assert r"\x1b[2J\u202erat.tar" in done.stderr
    assert not {"\x1b", "\u202e"} & set(done.stderr + done.stdout)


def test_sigterm_ends_a_command_without_a_way_of_its_own_as_interrupted():
    program = (
        "import jobs.cli, time; jobs.cli.main = lambda: print('up', flush=True) or time.sleep(60); jobs.cli.entry()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (
        3,
        "voxmill: interrupted; the same command again goes on where this one stopped\n",
    )
