"""Ray clusters of several nodes on 127.0.0.1, and the processes of a run, watched from outside.

`python -m tests.clusters` holds a cluster and adds a node for each JSON line on its stdin; all nodes end with it.
In a process of its own, since a process can know only one Ray, and its settings are read when it is imported.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

ROOT = Path(__file__).parents[1]
WAIT_S_MAX = 60.0

RAY_AGENTS = {"ray::DashboardA", "ray::RuntimeEnv"}
"""They outlive a killed Ray by a minute, in which they try to tell it; the names are as short as the kernel's."""

FAST_DEATHS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}
"""A dead node is known after two seconds, not fifteen."""

T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str, limit_s: float = WAIT_S_MAX) -> T:
    """The first true value of `condition`. Raises `TimeoutError` saying what was waited for."""
    deadline_s = time.monotonic() + limit_s
    while not (value := condition()):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{what}: not so after {limit_s:g} s")
        time.sleep(0.05)
    return value


@dataclass(frozen=True)
class Process:
    """A process that stays the same one when its pid is given to another."""

    pid: int
    started: int
    name: str = field(compare=False)
    parent: int = field(compare=False)  # another one when the parent ends
    session: int = field(compare=False)

    @classmethod
    def find(cls, pid: int) -> Process | None:
        """The process of a pid; None when it has ended, waited for or not."""
        try:
            head, _, tail = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            return None
        state, parent, _, session, *rest = tail.split()
        name = head.partition("(")[2]
        return None if state in "ZX" else cls(pid, int(rest[15]), name, int(parent), int(session))

    @property
    def runs(self) -> bool:
        return Process.find(self.pid) == self

    @property
    def is_stopped(self) -> bool:
        """Whether SIGSTOP holds it."""
        tail = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2]
        return tail.split()[0] == "T"

    def inodes(self) -> set[str]:
        """The inodes of its sockets."""
        found = set()
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                match = re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink()))
            except FileNotFoundError:
                continue  # closed meanwhile
            found |= {match[1]} if match else set()
        return found


def processes() -> list[Process]:
    """All that run now."""
    found = [Process.find(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [process for process in found if process is not None]


def descendants(pid: int) -> list[Process]:
    """Children of a process, and theirs."""
    everyone, found, parents = processes(), [], {pid}
    while parents:
        children = [process for process in everyone if process.parent in parents]
        found += children
        parents = {process.pid for process in children}
    return found


def session(leader: int) -> list[Process]:
    """All that a session's leader started at any remove, also when it has ended: whatever happens, they keep it."""
    return [process for process in processes() if process.session == leader]


def listening(processes: list[Process]) -> set[str]:
    """Addresses, as hexadecimal of the kernel's tables, that these processes listen on by TCP."""
    inodes = {inode for process in processes for inode in process.inodes()}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}


def kill(processes: list[Process]) -> None:
    """SIGKILL, to those that still run."""
    for process in processes:
        if process.runs:
            os.kill(process.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Node:
    """A node of a cluster, by its raylet."""

    raylet: int

    def kill(self) -> None:
        """As a host dies: the raylet and all that runs below it, at once."""
        found = [Process.find(self.raylet), *descendants(self.raylet)]
        kill([process for process in found if process is not None])


class Cluster:
    """A cluster held by a process of its own."""

    def __init__(self, process: subprocess.Popen[str], environment: dict[str, str]) -> None:
        self._process = process
        self._first = json.loads(self._ask({}))
        self.address: str = self._first["address"]
        self.environment = environment
        self.head = Node(self._first["raylet"])

    def add(self, **resources: Any) -> Node:
        """A node more, known to the cluster when this returns."""
        return Node(json.loads(self._ask(resources))["raylet"])

    def kill_head(self) -> None:
        """As the head's host dies: its raylet, the cluster's GCS and all below them."""
        kill([one for one in session(self._process.pid) if one.name.startswith("gcs_server")])
        self.head.kill()

    def _ask(self, request: dict[str, Any]) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if request:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the cluster's process has ended"
        return answer


@contextmanager
def cluster(**resources: Any) -> Iterator[Cluster]:
    """A cluster of one node with these resources, bound to loopback, that lets in only who has its token."""
    environment = {
        **os.environ,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # binds loopback
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": uuid4().hex,
    }
    command = [sys.executable, "-m", "tests.clusters", json.dumps(resources)]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield Cluster(process, environment)
        finally:
            process.kill()
            process.wait()
            kill(session(process.pid))


class Run:
    """`voxmill run` as a program of its own, seen by its lines, its exit code and its processes."""

    def __init__(self, folder: Path, arguments: list[str], environment: dict[str, str]) -> None:
        name = uuid4().hex
        self._stdout, self._stderr = folder / f"{name}.out", folder / f"{name}.err"
        with self._stdout.open("w") as stdout, self._stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jobs.cli", "run", *arguments, "--json"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    @property
    def processes(self) -> list[Process]:
        """Those of it that run now, itself among them."""
        return session(self.process.pid)

    @property
    def text(self) -> str:
        """All that it said so far."""
        return self._stderr.read_text()

    def find(self, pattern: str, count: int = 1) -> list[re.Match[str]]:
        """Wait until its lines match so often; in their order."""

        def found() -> list[re.Match[str]]:
            matches = list(re.finditer(pattern, self.text))
            if len(matches) < count and self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode} without {pattern!r}:\n{self.text}")
            return matches if len(matches) >= count else []

        return wait_for(found, f"{count} times {pattern!r}")

    def end(self, limit_s: float = WAIT_S_MAX) -> tuple[int, dict[str, Any]]:
        """Wait for its end; exit code and report, which is empty when there is none."""
        exit_code = self.process.wait(limit_s)
        report = self._stdout.read_text()
        return exit_code, json.loads(report) if report else {}


@contextmanager
def run(folder: Path, *arguments: str, **environment: str) -> Iterator[Run]:
    """A run that is ended, with all that it started, when the block is left."""
    started = Run(folder, list(arguments), {**os.environ, **environment})
    try:
        yield started
    finally:
        started.process.kill()
        started.process.wait()
        kill(started.processes)


def main() -> None:
    """Hold a cluster: the first node by argv, one more for each line."""
    from ray.cluster_utils import Cluster as RayCluster

    held = RayCluster()

    def add(**arguments: Any) -> None:
        node = held.add_node(include_dashboard=False, **arguments)
        raylet = node.all_processes["raylet"][0].process.pid
        sys.stdout.write(json.dumps({"raylet": raylet, "address": held.address}) + "\n")
        sys.stdout.flush()

    add(**json.loads(sys.argv[1]), _system_config=FAST_DEATHS)
    for line in sys.stdin:
        add(**json.loads(line))


if __name__ == "__main__":
    main()
