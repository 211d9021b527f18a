"""What people do: two drivers, another config, other weights, changed inputs, an old format, impatience."""

from __future__ import annotations

import json
import os
import signal

from tests.clusters import session, wait_for
from tests.corpus import speech_shards
from tests.faults.matrix import row


@row("people", "two drivers on one job", "the same command twice, at once")
def test_two_drivers(ground):
    ground.put_clean(5)
    pair = [ground.start("--codec=calibrated:cost_s=0.2") for _ in range(2)]
    for one in pair:
        ground.check(one.wait())


@row("people", "another config on the same output", "the same command with another batching.batch_s")
def test_another_config(ground):
    ground.put_clean()
    before = ground.check(ground.run())
    ended = ground.run("--set=batching.batch_s=50")
    assert (ended.exit_code, ended.report) == (2, {})
    assert "batching.batch_s: there 60.0, here 50.0" in ended.stderr
    assert ground.place.objects() == before, "a refused run changes nothing"


@row("people", "other weights on the same output", "the same command with a codec of another hash")
def test_other_weights(ground):
    ground.put_clean()
    before = ground.check(ground.run())
    ended = ground.run("--codec=calibrated:frame_size=480")
    assert (ended.exit_code, ended.report) == (2, {})
    assert "codec.checkpoint_hash" in ended.stderr
    assert ground.place.objects() == before


@row("people", "a committed input is changed", "one shard replaced by another; then --redo-changed")
def test_changed_input(ground):
    shards = ground.put_clean()
    before = ground.check(ground.run())
    ground.put({"speech-001.tar": speech_shards(5)["speech-001.tar"]})
    refused = ground.run()
    assert refused.exit_code == 2
    assert "speech-001.tar" in refused.stderr
    assert "--redo-changed" in refused.stderr
    assert ground.place.objects() == before
    ground.check(ground.run("--redo-changed"))
    assert shards.keys() == ground.shards.keys()


@row("people", "an old format version", "job.json says format version 0; a commit record does")
def test_old_format_version(ground):
    ground.put_clean()
    before = ground.check(ground.run())
    commit = next(path for path in before if path.startswith("commits/"))
    for path in ("job.json", commit):
        old = json.dumps(json.loads(before[path]) | {"format_version": 0}).encode()
        ground.place.put(f"out/{path}", old)
        ended = ground.run()
        assert ended.exit_code == 2, ended.stderr
        assert "format version 0" in ended.stderr
        assert path in ended.stderr
        assert {**ground.place.objects(), path: b""} == {**before, path: b""}
        ground.place.put(f"out/{path}", before[path])
    ground.check(ground.run())


@row("people", "Ctrl-C twice", "SIGINT, and another when the run says that it stops; then the same command")
def test_ctrl_c_twice(ground):
    ground.put_clean(10)
    running = ground.start("--codec=calibrated:cost_s=2", "--set=running.drain_s=80")
    # Then another shard is under way: with none there would be nothing to drain, and no time for a second signal.
    wait_for(lambda: any(path.startswith("commits/") for path in ground.place.objects()), "a commit")
    os.kill(running.pid, signal.SIGINT)
    wait_for(lambda: "Ctrl-C again" in running.stderr, "the drain")
    os.kill(running.pid, signal.SIGINT)
    ground.check(running.wait(20), exit_code=3, may_miss=True, says=["the same command again"])
    wait_for(lambda: not session(running.pid), "all processes of the run gone")
    ground.check(ground.run())


@row("people", "the driver is killed between two shards", "SIGKILL once a shard is committed; then the same command")
def test_killed_and_run_again(ground):
    ground.put_clean(10)
    running = ground.start("--codec=calibrated:cost_s=0.5")
    wait_for(lambda: any(path.startswith("commits/") for path in ground.place.objects()), "a commit")
    os.kill(running.pid, signal.SIGKILL)
    ground.check(running.wait(), exit_code=-9, may_miss=True)
    ended = ground.run()
    ground.check(ended)
    assert 0 < ended.report["num_committed_now"] < 10
