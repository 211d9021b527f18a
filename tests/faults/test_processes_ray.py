"""Replicas, raylets, hosts, drivers and the head of Ray that are killed, stopped and confused."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from tests import clusters
from tests.clusters import RAY_AGENTS, Process, descendants, kill, session, wait_for
from tests.corpus import speech_shards
from tests.faults.matrix import row
from tests.faults.saboteurs import in_replicas, noted, sabotage
from tests.faults.test_codec_faults import LENGTHS
from tests.faults.test_processes import num_commits

pytestmark = pytest.mark.timeout(600)

RUN_S_MAX = 240.0
"""A Ray of its own and each new replica take seconds, on a busy machine many."""

ALONE = ("--executor=ray", "--replicas=1", "--set=running.shards_in_flight=1")
"""One replica with one shard at a time: a death costs exactly one attempt."""

COMMIT = "before put_if_absent out/commits/speech-000.*"

CGROUPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))
"""Of version 1, then of version 2."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[clusters.Cluster]:
    """A head without room for a replica: the tests add hosts."""
    with clusters.cluster(num_cpus=0) as started:
        yield started


def replicas(running) -> list[Process]:
    """The replicas that came up and run, in their order."""
    pids = re.findall(r"replica \w+ is up on \S+ pid (\d+)", running.stderr)
    return [found for pid in pids if (found := Process.find(int(pid)))]


def start(ground, cluster, *flags, **more):
    flags = ("--executor=ray", f"--ray-address={cluster.address}", "--set=running.heartbeat_s=0.5", *flags)
    return ground.start(*flags, **more, **cluster.environment)


def errors(objects) -> set[str]:
    return {json.loads(content)["error"] for path, content in objects.items() if path.startswith("failures/")}


@row("processes", "a replica is killed", "SIGKILL of its Ray actor from inside, at a clip, once")
def test_replica_killed(ground, tmp_path):
    ground.put_clean(3)
    codec = sabotage("with_codec", tmp_path / "notes", faults={LENGTHS[0]: "SIGKILL once"})
    objects = ground.check(ground.run(*ALONE, sabotage=in_replicas(codec), limit_s=RUN_S_MAX))
    assert noted(tmp_path / "notes") == [f"SIGKILL at {LENGTHS[0]}"]
    assert (ground.num_redone, errors(objects)) == (1, {"ReplicaLostError"})


@row(
    "processes",
    "a replica is killed at every call to the store",
    "SIGKILL right before and right after each, one replica after the other, in one run",
    heavy=True,
)
def test_replica_killed_at_every_call_to_the_store(ground, tmp_path):
    ground.put(dict(list(speech_shards(10).items())[:1]))
    kills = in_replicas(sabotage("at_store_calls", tmp_path / "notes", signal_name="SIGKILL"))
    ground.check(ground.run(*ALONE, "--set=running.replica_deaths_max=40", sabotage=kills, limit_s=RUN_S_MAX))
    steps = noted(tmp_path / "notes")
    calls = ["read", "read_range", "put_file", "put_if_absent"]
    assert [step.split()[:2] for step in steps[:8]] == [[when, call] for call in calls for when in ("before", "after")]
    assert ground.num_redone == len(steps)


@row("processes", "a replica stops", "SIGSTOP right before its commit; running.lease_s is 15", heavy=True)
def test_stopped_replica(ground, tmp_path):
    ground.put_clean(3)
    stops = sabotage("at_store_calls", tmp_path / "notes", only=COMMIT, signal_name="SIGSTOP")
    flags = (*ALONE, "--set=running.heartbeat_s=0.5", "--set=running.lease_s=15")
    ended = ground.run(*flags, sabotage=in_replicas(stops), limit_s=RUN_S_MAX)
    ground.check(ended, says=["no sign of life for 15 s (running.lease_s); it holds", "speech-000.tar"])
    assert (len(noted(tmp_path / "notes")), ground.num_redone) == (1, 1)


@row(
    "processes",
    "a host freezes and thaws",
    "SIGSTOP of a replica right before its commit, its raylet and all below; SIGCONT when its shard is done elsewhere",
    heavy=True,
)
def test_frozen_host(ground, cluster, tmp_path):
    ground.put_clean(3)
    nodes = [cluster.add(num_cpus=1) for _ in range(2)]
    stops = sabotage("at_store_calls", tmp_path / "notes", only=COMMIT, signal_name="SIGSTOP")
    only = "after (put_if_absent out/commits|delete out/tokens)/speech-000.*"
    sees = sabotage("at_store_calls", tmp_path / "seen", only=only)
    running = start(ground, cluster, "--set=running.lease_s=15", sabotage=in_replicas(stops, sees))
    wait_for(lambda: noted(tmp_path / "notes"), "the stop", RUN_S_MAX)
    (zombie,) = wait_for(lambda: [one for one in replicas(running) if one.is_stopped], "the stopped replica", RUN_S_MAX)
    (host,) = [node for node in nodes if zombie in descendants(node.raylet)]
    for process in [host.raylet, *(process.pid for process in descendants(host.raylet))]:
        os.kill(process, signal.SIGSTOP)
    ended = running.wait(RUN_S_MAX)
    before = ground.check(ended)
    assert (zombie.is_stopped, len(noted(tmp_path / "seen"))) == (True, 1)
    os.kill(zombie.pid, signal.SIGCONT)
    wait_for(lambda: len(noted(tmp_path / "seen")) == 3, "the late commit, and what follows from its loss", RUN_S_MAX)
    calls = [step.split()[1] for step in noted(tmp_path / "seen")]
    assert calls == ["put_if_absent", "put_if_absent", "delete"]
    for process in [host.raylet, *(process.pid for process in descendants(host.raylet))]:
        os.kill(process, signal.SIGCONT)
    kill([zombie])  # Ray may let it live
    assert ground.check(ended) == before
    for node in nodes:
        node.kill()


@row(
    "processes", "a shard that always kills its replica", "SIGKILL of the Ray actor at one clip, every time", heavy=True
)
def test_shard_that_kills(ground, tmp_path):
    ground.put_clean(10)
    codec = sabotage("with_codec", tmp_path / "notes", faults={LENGTHS[3]: "SIGKILL"})
    flags = ("--executor=ray", "--replicas=2", "--set=running.replica_deaths_max=3")
    ended = ground.run(*flags, sabotage=in_replicas(codec), limit_s=RUN_S_MAX)
    ground.check(ended, exit_code=1, failed={"speech-003.tar": "3 replicas died with this shard"}, says=["speech-003"])
    assert noted(tmp_path / "notes") == [f"SIGKILL at {LENGTHS[3]}"] * 3


@row(
    "processes", "a codec that hangs, on Ray", "it never returns from one clip, once; running.stall_s is 15", heavy=True
)
def test_codec_that_hangs(ground, tmp_path):
    ground.put_clean(3)
    codec = sabotage("with_codec", tmp_path / "notes", faults={LENGTHS[0]: "hang once"})
    ended = ground.run(*ALONE, "--set=running.stall_s=15", sabotage=in_replicas(codec), limit_s=RUN_S_MAX)
    ground.check(ended, says=["no progress for 15 s (running.stall_s); it holds", "speech-000.tar"])
    assert (noted(tmp_path / "notes"), ground.num_redone) == ([f"hang at {LENGTHS[0]}"], 1)


@contextmanager
def cgroup(limit_bytes: int) -> Iterator[Path]:
    """A group whose processes the kernel kills when they take more; skips where there is no right to make one."""
    for root, limit in zip(CGROUPS, ("memory.limit_in_bytes", "memory.max"), strict=True):
        group = root / f"voxmill-{uuid4().hex}"
        try:
            group.mkdir()
            (group / limit).write_text(str(limit_bytes))
        except OSError:
            continue
        try:
            yield group
        finally:
            wait_for(lambda members=group / "cgroup.procs": not members.read_text(), "the end of its processes")
            group.rmdir()
        return
    pytest.skip("there is no right to make a cgroup here")


@row(
    "processes",
    "out of memory on the host",
    "the kernel's OOM killer, in a cgroup of 1 GiB for one replica",
    heavy=True,
)
def test_out_of_memory_on_the_host(ground, tmp_path):
    ground.put_clean(3)
    notes = tmp_path / "notes"
    with cgroup(1 << 30) as group:
        codec = sabotage("with_codec", notes, faults={LENGTHS[0]: "allocate once"})
        limit = sabotage("in_cgroup", notes, cgroup=str(group))
        objects = ground.check(ground.run(*ALONE, sabotage=in_replicas(limit, codec), limit_s=RUN_S_MAX))
    assert noted(notes) == ["a process below the limit", f"allocate at {LENGTHS[0]}"]
    assert (ground.num_redone, errors(objects)) == (1, {"ReplicaLostError"})


@row("processes", "a raylet is killed", "SIGKILL of the raylet alone while its replica has a shard", heavy=True)
def test_raylet_killed(ground, cluster):
    lose_a_host(ground, cluster, lambda node: os.kill(node.raylet, signal.SIGKILL))


@row("processes", "a host is killed", "SIGKILL of a raylet and of all below it", heavy=True)
def test_host_killed(ground, cluster):
    lose_a_host(ground, cluster, lambda node: node.kill())


@row("processes", "a spot host is taken back", "SIGTERM of its raylet; SIGKILL of what is left 2 s later", heavy=True)
def test_host_taken_back(ground, cluster):
    def take_back(node):
        os.kill(node.raylet, signal.SIGTERM)
        try:
            wait_for(lambda: Process.find(node.raylet) is None, "the raylet's end", 2)
        except TimeoutError:
            node.kill()

    lose_a_host(ground, cluster, take_back)


def lose_a_host(ground, cluster, lose) -> None:
    """Two hosts, of which one goes while its replica has shards; the other does the rest."""
    ground.put_clean(10)
    nodes = [cluster.add(num_cpus=1)]
    running = start(ground, cluster, "--codec=calibrated:cost_s=3")  # the second host takes its time
    wait_for(lambda: replicas(running), "the first replica", RUN_S_MAX)
    nodes.append(cluster.add(num_cpus=1))
    wait_for(lambda: len(replicas(running)) == 2, "the second replica", RUN_S_MAX)
    lose(nodes[0])
    ended = running.wait(RUN_S_MAX)
    ground.check(ended)
    assert re.search(r"replica \w+ is gone \(.*\); [12] shards go back", ended.stderr)
    assert ground.num_redone in (1, 2)
    nodes[0].kill()
    nodes[1].kill()


@row(
    "processes", "the driver is killed, on Ray", "SIGKILL once a shard is committed; then the same command", heavy=True
)
def test_driver_killed(ground):
    ground.put_clean(5)
    running = ground.start(*ALONE, "--codec=calibrated:cost_s=1")
    wait_for(lambda: num_commits(ground), "a commit", RUN_S_MAX)
    os.kill(running.pid, signal.SIGKILL)
    ground.check(running.wait(RUN_S_MAX), exit_code=-9, may_miss=True)
    wait_for(
        lambda: {process.name for process in session(running.pid)} <= RAY_AGENTS, "the end of all that works", RUN_S_MAX
    )
    kill(session(running.pid))
    ended = ground.run(*ALONE, limit_s=RUN_S_MAX)
    ground.check(ended)
    assert 0 < ended.report["num_committed_now"] < 5


@row(
    "processes", "a spot instance is taken back, on Ray", "SIGTERM of the driver while shards are under way", heavy=True
)
def test_sigterm(ground):
    ground.put_clean(5)
    running = ground.start(*ALONE, "--codec=calibrated:cost_s=1")
    wait_for(lambda: num_commits(ground), "a commit", RUN_S_MAX)
    os.kill(running.pid, signal.SIGTERM)
    ended = running.wait(RUN_S_MAX)
    ground.check(ended, exit_code=3, may_miss=True, says=["stopping: shards under way have 20 s"])
    wait_for(lambda: not session(running.pid), "all processes of the run gone", RUN_S_MAX)
    assert ended.report["num_committed_now"] < 5
    ground.check(ground.run(*ALONE, limit_s=RUN_S_MAX))


@row(
    "processes",
    "the head of Ray is killed",
    "SIGKILL of its raylet, its GCS and all below; the hosts go on",
    heavy=True,
)
def test_head_killed(ground):
    ground.put_clean(5)
    with clusters.cluster(num_cpus=0) as cluster:
        cluster.add(num_cpus=1)
        running = start(ground, cluster, "--codec=calibrated:cost_s=1", "--set=running.shards_in_flight=1")
        wait_for(lambda: num_commits(ground), "a commit", RUN_S_MAX)
        cluster.kill_head()
        ended = running.wait(RUN_S_MAX)
        # Ray itself ends a process that has lost its head, after a minute; the words are Ray's.
        ground.check(ended, exit_code=1, may_miss=True, says=["Failed to connect to GCS within 60 seconds"])
    ground.check(ground.run(*ALONE, limit_s=RUN_S_MAX))
