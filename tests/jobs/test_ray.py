"""What is Ray's own: placement on GPUs, nodes that come and go, killed replicas and drivers, and what is left behind.

The GPUs are declared to Ray and not there; the codec runs on the CPU. A replica that must hold its shards while
something happens is stopped by SIGSTOP, so that no outcome depends on who is faster.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from jobs.run import run_job
from pipeline.config import load_config
from tests import clusters
from tests.clusters import RAY_AGENTS, Cluster, Run, descendants, wait_for
from tests.corpus import CLIPS, attempts, committed_hashes, put_shards, speech_shards, tokens_of

NUM_SHARDS = len(CLIPS)
UP = r"replica (?P<name>\w+) is up on \S+ pid (?P<pid>\d+)(, GPU (?P<gpus>\S+))?\n"
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
"""127.0.0.1, ::1 and ::ffff:127.0.0.1, as in /proc/net/tcp and tcp6."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One node with two GPUs."""
    with clusters.cluster(num_cpus=4, num_gpus=2) as started:
        yield started


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The hashes of an undisturbed inline run."""
    folder = tmp_path_factory.mktemp("reference")
    inputs = put_shards(f"{folder}/in", speech_shards(NUM_SHARDS))
    config = {"input": inputs, "output": f"{folder}/out", "codec": "calibrated:", "executor": "inline", "device": "cpu"}
    assert run_job(load_config(config), plain=True).exit_code == 0
    return committed_hashes(f"{folder}/out")


@pytest.fixture
def job(tmp_path) -> list[str]:
    """The flags of a job of ten shards that cost a second each."""
    put_shards(f"{tmp_path}/in", speech_shards(NUM_SHARDS))
    settings = ("decoding.workers=1", "running.tick_s=0.05", "running.retry_backoff_s=0.05", "running.heartbeat_s=0.5")
    return [
        f"--input={tmp_path}/in/", f"--output={tmp_path}/out", "--codec=calibrated:cost_s=1", "--device=cpu",
        *(f"--set={setting}" for setting in settings),
    ]  # fmt: skip


def stop_each(run: Run, count: int) -> list[re.Match[str]]:
    """Wait for so many replicas, each stopped as it comes up: it holds its first shards until it is let go."""
    for index in range(count):
        pid = int(run.find(UP, index + 1)[index]["pid"])
        wait_for(lambda pid=pid: descendants(pid), "decoding processes")
        os.kill(pid, signal.SIGSTOP)
    return run.find(UP, count)


def let_go(*replicas: re.Match[str]) -> None:
    for replica in replicas:
        os.kill(int(replica["pid"]), signal.SIGCONT)


def gone(run: Run, replica: re.Match[str]) -> int:
    """Wait until the run knows that a replica is gone; how many shards went back."""
    (line,) = run.find(rf"replica {replica['name']} is gone \(.*\); (\d+) shards go back")
    return int(line[1])


def assert_complete(folder: Path, reference: object) -> None:
    assert committed_hashes(f"{folder}/out") == reference
    assert set(tokens_of(f"{folder}/out")) == {clip.stem for clip in CLIPS}, "a plain glob sees each sample once"


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_gpus_are_shared_in_fractions_and_taken_whole(tmp_path, job, cluster, reference):
    flags = ["--set=ray.gpus_per_replica=0.5", "--set=running.shards_in_flight=1", f"--ray-address={cluster.address}"]
    with clusters.run(tmp_path, *job, *flags, **cluster.environment) as run:
        replicas = stop_each(run, 4)
        assert sorted(replica["gpus"] for replica in replicas) == ["0", "0", "1", "1"]
        run.process.send_signal(signal.SIGTERM)  # as a preempted host does
        run.find("stopping: shards under way")
        let_go(*replicas)
        exit_code, report = run.end()
    assert (exit_code, report["state"]) == (3, "interrupted")
    before = attempts(tmp_path)
    assert 4 <= len(before) < NUM_SHARDS, "what was under way is committed, what was not is not begun"

    flags = ["--set=ray.gpus_per_replica=1", "--replicas=4"]
    with clusters.run(tmp_path, *job, *flags, RAY_ADDRESS=cluster.address, **cluster.environment) as run:
        let_go(*stop_each(run, 2))
        exit_code, report = run.end()
        replicas = run.find(UP)
    assert sorted(replica["gpus"] for replica in replicas) == ["0", "1"], "four were asked for, two have a place"
    assert (exit_code, report["num_committed_now"]) == (0, NUM_SHARDS - len(before))
    assert attempts(tmp_path).items() >= before.items()
    assert_complete(tmp_path, reference)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_node_joins_and_dies_and_a_replica_is_killed(tmp_path, job, cluster, reference):
    flags = ["--set=ray.gpus_per_replica=1", f"--ray-address={cluster.address}"]
    with clusters.run(tmp_path, *job, *flags, **cluster.environment) as run:
        first, second = stop_each(run, 2)
        num_before = len(attempts(tmp_path))
        node = cluster.add(num_cpus=1, num_gpus=1)
        third = run.find(UP, 3)[2]
        assert int(third["pid"]) in {process.pid for process in descendants(node.raylet)}, "auto grew with the cluster"
        wait_for(lambda: len(attempts(tmp_path)) > num_before, "a commit by the replica on the new node")

        node.kill()
        num_back = gone(run, third)
        decoders = descendants(int(first["pid"]))
        assert decoders
        os.kill(int(first["pid"]), signal.SIGKILL)
        num_back += gone(run, first)
        run.find(UP, 4)
        wait_for(lambda: not any(process.runs for process in decoders), "the end of the killed replica's decoders")

        let_go(second)
        exit_code, _ = run.end()
    assert exit_code == 0
    assert_complete(tmp_path, reference)
    assert num_back >= 3, "both held shards"
    failures = [json.loads(path.read_text()) for path in (tmp_path / "out" / "failures").rglob("*.json")]
    assert [(r["error"], r["kind"], r["final"]) for r in failures] == [("ReplicaLostError", "infra", False)] * num_back
    assert descendants(cluster.head.raylet), "a cluster that was joined is not ended"


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_auto_means_cuda_where_the_cluster_has_gpus_and_replicas_without_it_refuse_the_run(tmp_path, job, cluster):
    flags = ["--device=auto", f"--ray-address={cluster.address}"]
    with clusters.run(tmp_path, *job, *flags, **cluster.environment) as run:
        exit_code, _ = run.end()
    assert json.loads((tmp_path / "out" / "job.json").read_text())["parts"]["device"] == "cuda"
    if not torch.cuda.is_available():
        assert exit_code == 2, "never on the CPU instead"
        assert re.search(r"RefusedError: no replica can start \(\d tried\): .*CUDA", run.text)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_ray_of_its_own_without_room_for_a_replica_is_refused(tmp_path, job):
    with clusters.run(tmp_path, *job, "--set=ray.resources={tpu: 1}") as run:
        exit_code, _ = run.end()
    assert exit_code == 2
    assert re.search(r"no node has room for a replica, which asks for \{'CPU': 1.0, 'tpu': 1.0\}", run.text)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_ray_of_its_own_listens_on_loopback_and_ends_with_the_driver(tmp_path, job, reference):
    job.append("--set=running.shards_in_flight=1")
    with clusters.run(tmp_path, *job) as run:
        run.find(UP)
        addresses = clusters.listening(run.processes)
        assert addresses
        assert addresses <= LOOPBACK
        wait_for(lambda: attempts(tmp_path), "the first commit")
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait()
        wait_for(lambda: {process.name for process in run.processes} <= RAY_AGENTS, "the end of all that works")
    killed = attempts(tmp_path)

    with clusters.run(tmp_path, *job) as run:
        wait_for(lambda: len(attempts(tmp_path)) > len(killed), "a commit more")
        os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
        exit_code, report = run.end()
        wait_for(lambda: not run.processes, "the end of all processes of an interrupted run")
    assert (exit_code, report["state"]) == (3, "interrupted")
    interrupted = attempts(tmp_path)
    assert len(interrupted) < NUM_SHARDS
    assert report["num_committed_now"] == len(interrupted) - len(killed)

    with clusters.run(tmp_path, *job) as run:
        exit_code, report = run.end()
        wait_for(lambda: not run.processes, "the end of all processes of a completed run")
    assert (exit_code, report["num_committed_now"]) == (0, NUM_SHARDS - len(interrupted))
    assert attempts(tmp_path).items() >= interrupted.items() >= killed.items()
    assert_complete(tmp_path, reference)
