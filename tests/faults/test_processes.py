"""Processes that are killed, stopped and confused, with the run in one process."""

from __future__ import annotations

import os
import signal

import pytest

from tests.clusters import Process, session, wait_for
from tests.corpus import CLIPS, speech_shards
from tests.faults.matrix import row
from tests.faults.saboteurs import noted, sabotage


def num_commits(ground) -> int:
    return sum(path.startswith("commits/") for path in ground.place.objects())


def put_some(ground, num_shards: int) -> None:
    """Put the first of ten shards of one clip each."""
    ground.put(dict(list(speech_shards(10).items())[:num_shards]))


@row(
    "processes", "the driver is killed around a commit", "SIGKILL right after a shard's object is put; after its commit"
)
def test_killed_around_a_commit(ground, tmp_path):
    put_some(ground, 1)
    notes = tmp_path / "notes"
    kills = sabotage("at_store_calls", notes, only=r"after put\w* out/(tokens|commits)/.*", signal_name="SIGKILL")
    for num_deaths in (1, 2):
        ground.check(ground.run(sabotage=kills), exit_code=-9, may_miss=True)
        assert len(noted(notes)) == num_deaths
    ended = ground.run(sabotage=kills)
    ground.check(ended)
    assert [step.split()[1] for step in noted(notes)] == ["put_file", "put_if_absent"]
    assert ended.report["num_committed_now"] == 0, "the second had committed it"


@row(
    "processes",
    "the driver is killed at every call to the store",
    "SIGKILL right before and right after each, one after the other, as an undisturbed run enumerates them",
    heavy=True,
)
@pytest.mark.timeout(900)
def test_killed_at_every_call_to_the_store(ground, faults_lab, tmp_path):
    whole = type(ground)(faults_lab, type(ground.place)(str(tmp_path / "whole")))
    put_some(whole, 2)
    flags = ("--set=running.status_every_s=3600", "--set=running.shards_in_flight=1")
    whole.check(whole.run(*flags, sabotage=sabotage("at_store_calls", tmp_path / "all")))
    wanted = noted(tmp_path / "all")
    assert {step.split()[1] for step in wanted} >= {"list", "read", "read_range", "put", "put_file", "put_if_absent"}

    put_some(ground, 2)
    notes, before = tmp_path / "notes", {}
    kills = sabotage("at_store_calls", notes, signal_name="SIGKILL")
    while (ended := ground.run(*flags, sabotage=kills)).exit_code == -9:
        objects = ground.check(ended, exit_code=-9, may_miss=True)
        commits = {path: content for path, content in objects.items() if path.startswith("commits/")}
        assert commits.items() >= before.items(), "what was committed stands"
        before = commits
    ground.check(ended)
    left_out = set(wanted) - set(noted(notes))
    # Only a run with work puts a second status, and each that came so far had none left.
    assert left_out == {"before put out/status.json #2", "after put out/status.json #2"}
    ground.note(f"{len(noted(notes))} runs")


@row(
    "processes",
    "SIGTERM at every call to the store",
    "raised right before each, one run after the other; a shard under way may end",
    heavy=True,
)
@pytest.mark.timeout(900)
def test_sigterm_at_every_call_to_the_store(ground, tmp_path):
    put_some(ground, 2)
    notes = tmp_path / "notes"
    terms = sabotage("at_store_calls", notes, only="before .*", signal_name="SIGTERM")
    flags = ("--set=running.status_every_s=3600", "--set=running.shards_in_flight=1")
    for number in range(1, 100):
        running = ground.start(*flags, sabotage=terms)
        ended = running.wait()
        wait_for(lambda running=running: not session(running.pid), "all processes of the run gone")
        if len(noted(notes)) < number:
            break
        is_done = ended.exit_code == 0 and ended.report["num_committed"] == 2
        ground.check(ended, exit_code=0 if is_done else 3, may_miss=not is_done)
    ground.check(ended)
    calls = {" ".join(step.split()[1:3]) for step in noted(notes)}
    assert calls >= {"put_if_absent out/job.json", "delete out/.probe-*", "put out/manifest.parquet", "list out/tokens"}
    ground.note(f"{len(noted(notes))} runs")


@row("processes", "decode workers are killed", "SIGKILL of the decoding process at each clip's first try")
def test_decode_workers_killed(ground, tmp_path):
    ground.put_clean(2)
    hook = sabotage("with_decoder_hook", tmp_path / "notes", signal_name="SIGKILL")
    ground.check(ground.run(sabotage=hook))
    assert sorted(noted(tmp_path / "notes")) == sorted(f"SIGKILL at {len(clip.read_bytes())} bytes" for clip in CLIPS)
    ground.note(f"{len(CLIPS)} workers")


@row(
    "processes",
    "a stopped driver wakes up after another has done its shards",
    "SIGSTOP right before it puts an object, or its commit; SIGCONT when the second driver is done",
)
@pytest.mark.parametrize(
    "step",
    [
        "before put_if_absent out/commits/speech-000",
        pytest.param("before put_file out/tokens/speech-000", marks=pytest.mark.heavy),
    ],
)
def test_stopped_driver(ground, tmp_path, step):
    put_some(ground, 2)
    notes = tmp_path / "notes"
    zombie = ground.start(sabotage=sabotage("at_store_calls", notes, only=f"{step}.*", signal_name="SIGSTOP"))
    wait_for(lambda: noted(notes) and Process.find(zombie.pid).is_stopped, "the first driver's stop")
    winner = ground.run()
    assert Process.find(zombie.pid).is_stopped
    before = ground.check(winner)
    assert winner.report["num_committed_now"] > 0
    os.kill(zombie.pid, signal.SIGCONT)
    late = zombie.wait()
    after = ground.check(late)
    assert late.report["num_committed_now"] + winner.report["num_committed_now"] == 2
    kept = ("commits/", "tokens/")
    assert [p for p in before if p.startswith(kept)] == [p for p in after if p.startswith(kept)]


@row("processes", "a spot instance is taken back", "SIGTERM, then SIGKILL of what is left when the grace is over")
def test_sigterm_with_a_grace(ground):
    ground.put_clean(10)
    running = ground.start("--codec=calibrated:cost_s=0.3", "--set=running.drain_s=10")
    wait_for(lambda: num_commits(ground), "a commit")
    os.kill(running.pid, signal.SIGTERM)
    ended = running.wait()
    ground.check(ended, exit_code=3, may_miss=True, says=["shards under way have 10 s"])
    assert ended.report["state"] == "interrupted"
    wait_for(lambda: not session(running.pid), "all processes of the run gone")

    hung = ground.start("--codec=calibrated:cost_s=3600", "--set=running.drain_s=3600")
    wait_for(lambda: "replica inline is up" in hung.stderr, "the start")
    os.kill(hung.pid, signal.SIGTERM)
    wait_for(lambda: "stopping" in hung.stderr, "the drain")
    os.kill(hung.pid, signal.SIGKILL)
    ground.check(hung.wait(), exit_code=-9, may_miss=True)
    wait_for(lambda: not session(hung.pid), "all processes of the run gone")
    ended = ground.run()
    ground.check(ended)
    assert 0 < ended.report["num_committed_now"] < 10


@row("processes", "a clock that jumps", "time.time() a day forward, then a day back, at every reading")
def test_jumping_clock(ground, tmp_path):
    ground.put_clean(3)
    flags = ("--set=running.status_every_s=0.05", "--set=running.manifest_every_s=0.05", "--set=running.lease_s=30")
    ended = ground.run(
        "--codec=calibrated:cost_s=0.2", *flags, sabotage=sabotage("with_jumping_clock", tmp_path / "notes")
    )
    ground.check(ended)
    assert noted(tmp_path / "notes") == ["a day forward", "a day back"]
    assert 0 < ended.report["wall_s"] < 60
