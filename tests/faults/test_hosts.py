"""Hosts that die and links that break, with a network of their own: nobody is told, unlike of a killed process."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator

import pytest

from tests.clusters import wait_for
from tests.faults.hosts import Network, network
from tests.faults.matrix import row
from tests.faults.test_processes import num_commits
from tests.faults.test_processes_ray import RUN_S_MAX, replicas

pytestmark = pytest.mark.timeout(600)

PARTITION_S = 60.0


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("hosts of their own need root and iproute2")
    with network(tmp_path_factory.mktemp("hosts")) as made:
        made.add(num_cpus=1)
        yield made


def start(ground, hosts, *flags):
    """A run on the head that has a replica on each other host."""
    ground.put_clean(10)
    flags = ("--executor=ray", f"--ray-address={hosts.ray_address}", "--set=running.heartbeat_s=1", *flags)
    enter = ("tests.faults.hosts", "enter", {"namespace": hosts.hosts[0].namespace})
    running = ground.start(*flags, sabotage=enter, **hosts.environment)
    wait_for(lambda: len(replicas(running)) == 2, "two replicas", RUN_S_MAX)
    wait_for(lambda: num_commits(ground), "a commit", RUN_S_MAX)
    return running


@row("processes", "a host dies, and nobody is told", "link down, then SIGKILL of all its processes", heavy=True)
def test_host_dies(ground, hosts):
    host = hosts.add(num_cpus=1)
    running = start(ground, hosts, "--codec=calibrated:cost_s=3", "--set=running.lease_s=15")
    host.kill()
    ended = running.wait(RUN_S_MAX)
    ground.check(ended, says=["no sign of life for 15 s (running.lease_s)"])
    assert ground.num_redone in (1, 2)


@row(
    "processes", "a host is cut off for 60 s", "link down, and up again; the store is reached all the while", heavy=True
)
def test_partition(ground, hosts):
    host = hosts.add(num_cpus=1)
    running = start(ground, hosts, "--codec=calibrated:cost_s=15", "--set=running.lease_s=15")
    host.link("down")
    time.sleep(PARTITION_S)
    assert not running.has_ended
    host.link("up")
    ended = running.wait(RUN_S_MAX)
    ground.check(ended, says=["no sign of life for 15 s (running.lease_s)"])
    assert ground.num_redone in (1, 2)
