"""Several hosts on one machine: network namespaces around a switch, each a node of one Ray. Needs root and iproute2.

The first host is the head, without room for a replica; drivers run there, by the sabotage `enter`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from tests.clusters import ROOT, wait_for

CLONE_NEWNET = 0x40000000
PORT = 6399


def ip(*arguments: str) -> str:
    """Runs iproute2; raises `CalledProcessError`."""
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def enter(namespace: str) -> None:
    """Sabotage: this process, which has one thread yet, moves to a host."""
    with Path("/run/netns", namespace).open() as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns to {namespace}")


@dataclass(frozen=True)
class Host:
    """A network namespace and its port of the switch, of the same name in the switch's namespace."""

    namespace: str
    switch: str
    address: str

    def link(self, state: str) -> None:
        """Plug the cable in (`up`) or out (`down`)."""
        ip("-n", self.switch, "link", "set", self.namespace, state)

    def pids(self) -> list[int]:
        """Of all that runs there."""
        return [int(pid) for pid in ip("netns", "pids", self.namespace).split()]

    def kill(self) -> None:
        """As a host dies: all at once, and nobody is told."""
        self.link("down")
        while pids := self.pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


class Network:
    """The switch and its hosts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name = f"vx{uuid4().hex[:6]}"
        self._nodes: list[subprocess.Popen[bytes]] = []
        self.hosts: list[Host] = []
        self.environment = {
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": uuid4().hex,
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",  # else Ray would know loopback alone
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    @property
    def ray_address(self) -> str:
        return f"{self.hosts[0].address}:{PORT}"

    def open(self) -> None:
        """The switch and the head. Raises `CalledProcessError` where namespaces are not allowed."""
        ip("netns", "add", self._name)
        ip("-n", self._name, "link", "add", "switch", "type", "bridge")
        ip("-n", self._name, "link", "set", "switch", "up")
        self.add(num_cpus=0)

    def add(self, num_cpus: int) -> Host:
        """A host more, with a Ray node that begins to start."""
        number = len(self.hosts)
        host = Host(f"{self._name}-{number}", self._name, f"10.77.0.{10 + number}")
        ip("netns", "add", host.namespace)
        self.hosts.append(host)
        ip("-n", self._name, "link", "add", host.namespace, "type", "veth", "peer", "eth0", "netns", host.namespace)
        ip("-n", self._name, "link", "set", host.namespace, "master", "switch", "up")
        ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", host.namespace, "link", "set", device, "up")
        where = ["--head", f"--port={PORT}", "--include-dashboard=false"]
        if number:
            where = [f"--address={self.ray_address}"]
        command = [
            "ip",
            "netns",
            "exec",
            host.namespace,
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--block",
        ]
        flags = [f"--node-ip-address={host.address}", f"--num-cpus={num_cpus}", f"--object-store-memory={100 << 20}"]
        with (self._folder / host.namespace).open("wb") as said:
            node = subprocess.Popen(
                [*command, *where, *flags],
                cwd=ROOT,
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._nodes.append(node)
        wait_for(lambda: "--block" in (self._folder / host.namespace).read_text(), f"the node of {host.namespace}")
        return host

    def close(self) -> None:
        """End all that runs on the hosts, then the hosts."""
        for host in self.hosts:
            host.kill()
            ip("netns", "delete", host.namespace)
        ip("netns", "delete", self._name)
        for node in self._nodes:
            node.wait()


@contextmanager
def network(folder: Path) -> Iterator[Network]:
    """A network that is gone with all its processes when the block is left."""
    made = Network(folder)
    try:
        made.open()
        yield made
    finally:
        made.close()
