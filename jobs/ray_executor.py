"""Replicas as Ray actors: placement, growth with the cluster, and death. Knows nothing of shards' states.

Tasks and outcomes are small; no audio and no token passes through the driver or the object store.
"""

from __future__ import annotations

import logging
import os
import platform
import queue
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from math import floor
from typing import Any, Literal
from uuid import uuid4

import ray
from ray.exceptions import RayError

from jobs.executor import Alive, Ended, Event, ReplicaDown, ReplicaUp
from jobs.interrupts import sigterm_kept
from jobs.replica import Failure, Mark, Replica, Setup
from pipeline.commit import Committed
from pipeline.config import CommonConfig, Device
from pipeline.errors import ConfigError, InfraError, RefusedError, ReplicaLostError
from pipeline.types import Task

CONNECT_S_MAX = 10.0
"""For a cluster's head to take a connection."""

LOCAL_OBJECT_STORE_BYTES = 128 << 20
"""Of a Ray of our own: nothing large goes through it, and some hosts have a small /dev/shm."""


class ReplicaActor:
    """A replica in a Ray worker; `start` is apart from the constructor, so that its errors arrive typed."""

    def __init__(self) -> None:
        self._replica: Replica | None = None

    def start(self, setup: Setup) -> str | Failure:
        """Load the codec; returns where the replica is: host, process, and the GPUs that it may use."""
        try:
            self._replica = Replica(setup)
        except Exception as error:  # the border of the replica: the driver decides by the failure's kind
            return Failure.of(error)
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES")  # Ray gives each actor its share
        return f"{platform.node()} pid {os.getpid()}" + (f", GPU {gpus}" if gpus else "")

    def process(self, task: Task) -> Committed | Failure:
        """Do one shard."""
        assert self._replica is not None
        return self._replica.process(task)

    @ray.method(concurrency_group="control")
    def progress(self) -> Mapping[str, Mark]:
        """How far each attempt is; answered while shards are under way."""
        return self._replica.progress() if self._replica is not None else {}


_remote: Any = ray.remote  # its type knows no concurrency groups


class _Start:
    """The call that loads the codec."""


class _AskForLife:
    """The call that asks how far the attempts are."""


_Call = _Start | _AskForLife | Task


@dataclass
class _Handle:
    actor: Any
    started_s: float
    up: bool = False


class RayExecutor:
    """Keeps the wanted number of actors and turns what becomes of their calls into events.

    Ray itself puts each call that ended into a queue: to wait for all calls of a thousand replicas anew at every event
    (`ray.wait`) would cost more the more there are.
    """

    def __init__(self, config: CommonConfig, replica_class: type | None = None) -> None:
        """Connect to Ray; `replica_class` has the methods of `ReplicaActor`, which it is by default."""
        self._config = config
        self._remote_replica = _remote(concurrency_groups={"control": 1})(replica_class or ReplicaActor)
        self._setup: Any = None
        self._replicas: dict[str, _Handle] = {}
        self._ended: queue.SimpleQueue[tuple[str, _Call, Future[Any]]] = queue.SimpleQueue()
        self._due: deque[tuple[float, str]] = deque()
        self._device: Device = "cpu"
        self._connected_here = not ray.is_initialized()
        self._own_ray = self._connected_here and _connect(config)

    def pick_device(self, asked: Device | Literal["auto"]) -> Device:
        """`auto` is CUDA where some node has a GPU; a cluster that was joined may still grow one."""
        has_gpu = _cluster().get("GPU", 0) > 0
        if asked == "cuda" and not has_gpu and self._own_ray:
            raise ConfigError("device is cuda, but this host has no GPU; use --device cpu, or join a cluster")
        return asked if asked != "auto" else "cuda" if has_gpu else "cpu"

    def start(self, setup: Setup) -> None:
        """Ask for the replicas. Raises `ConfigError` when our own Ray, which cannot grow, has room for none."""
        self._device = setup.device
        self._setup = ray.put(setup)
        if self._own_ray and not self._room():
            raise ConfigError(f"{self.outlook()}; ask for less (ray.cpus_per_replica, ...), or join a cluster")
        self.adjust()

    def adjust(self) -> int:
        """Ask for as many replicas as are wanted now; those not yet placed are taken back when fewer are."""
        wanted = self._wanted()
        for replica in [name for name, handle in self._replicas.items() if not handle.up]:
            if len(self._replicas) <= wanted:
                break
            self.give_up(replica)
        while len(self._replicas) < wanted:
            self._add()
        return wanted

    def outlook(self) -> str:
        """Whether some node has room, or what is asked and what is there."""
        if self._room():
            return "replicas are placed and load the codec, or wait for other jobs of the cluster"
        has = {name: count for name, count in sorted(_cluster().items()) if ":" not in name}
        return f"no node has room for a replica, which asks for {self._needs()}; all nodes together have {has}"

    def submit(self, replica: str, task: Task) -> None:
        """Call `process` on the actor."""
        self._follow(replica, task, self._replicas[replica].actor.process.remote(task))

    def poll(self, timeout_s: float) -> Sequence[Event]:
        """Wait for the first call to end, then take all that have."""
        self._ask_for_life()
        events: list[Event] = []
        with suppress(queue.Empty):
            events += self._events(*self._ended.get(timeout=timeout_s))
            while True:
                events += self._events(*self._ended.get_nowait())
        return events + self._slow_starters()

    def give_up(self, replica: str) -> None:
        """Kill the actor."""
        handle = self._replicas.pop(replica)
        ray.kill(handle.actor, no_restart=True)

    def close(self) -> None:
        """Kill all actors; end the Ray that we started, or leave the one that we joined."""
        for replica in list(self._replicas):
            self.give_up(replica)
        if self._connected_here:
            with sigterm_kept():
                ray.shutdown()

    def _gpus(self) -> float:
        asked = self._config.ray.gpus_per_replica
        if asked is None:
            return 1.0 if self._device == "cuda" else 0.0
        return asked

    def _wanted(self) -> int:
        if self._config.replicas != "auto":
            return self._config.replicas
        return max(1, self._room())

    def _needs(self) -> dict[str, float]:
        """What one replica asks of a node."""
        wanted = self._config.ray
        needs = {"CPU": wanted.cpus_per_replica, "GPU": self._gpus(), "memory": wanted.memory_bytes_per_replica}
        return {name: need for name, need in (needs | wanted.resources).items() if need}

    def _room(self) -> int:
        """How many replicas the nodes that are alive have room for, other jobs apart."""
        return sum(_fits(node, self._needs()) for node in _nodes())

    def _add(self) -> None:
        in_flight = self._config.running.shards_in_flight
        actor = self._remote_replica.options(
            num_cpus=self._config.ray.cpus_per_replica,
            num_gpus=self._gpus(),
            memory=self._config.ray.memory_bytes_per_replica or None,
            resources=self._config.ray.resources or None,
            max_concurrency=in_flight,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        ).remote()
        name = uuid4().hex[:8]
        self._replicas[name] = _Handle(actor, time.monotonic())
        self._follow(name, _Start(), actor.start.remote(self._setup))

    def _follow(self, name: str, call: _Call, ref: Any) -> None:
        """Have Ray tell, from a thread of its own, when a call ends."""
        ref.future().add_done_callback(lambda future: self._ended.put((name, call, future)))

    def _ask_for_life(self) -> None:
        now_s = time.monotonic()
        while self._due and self._due[0][0] <= now_s:
            _, name = self._due.popleft()
            if name in self._replicas:
                self._follow(name, _AskForLife(), self._replicas[name].actor.progress.remote())

    def _events(self, name: str, call: _Call, future: Future[Any]) -> list[Event]:
        """What a call that ended means; nothing when its replica was given up meanwhile."""
        handle = self._replicas.get(name)
        if handle is None:
            return []
        try:
            outcome = future.result()
        except RayError as error:
            # Whatever the call was: the actor or its node is gone. The attempts' true outcome is in the store.
            self.give_up(name)
            lost = Failure.of(ReplicaLostError(_first_line(error))) if not handle.up else None
            return [ReplicaDown(name, _first_line(error), lost)]
        if isinstance(call, Task):
            return [Ended(name, call, outcome)]
        if isinstance(outcome, Failure):
            self.give_up(name)
            return [ReplicaDown(name, f"it could not start: {outcome.message}", outcome)]
        self._due.append((time.monotonic() + self._config.running.heartbeat_s, name))
        if isinstance(call, _AskForLife):
            return [Alive(name, outcome)]
        handle.up = True
        return [ReplicaUp(name, outcome)]

    def _slow_starters(self) -> list[Event]:
        """Replicas that were placed but do not come up; those not yet placed may wait for room in the cluster."""
        if any(handle.up for handle in self._replicas.values()):
            return []
        now_s, limit_s = time.monotonic(), self._config.running.replica_start_s_max
        late = [name for name, handle in self._replicas.items() if now_s - handle.started_s > limit_s]
        events: list[Event] = []
        for name in late:
            self.give_up(name)
            why = (
                f"no replica came up within {limit_s} s (running.replica_start_s_max); asked of the cluster: "
                f"{self._config.ray.cpus_per_replica} CPU, {self._gpus()} GPU, {self._config.ray.resources} a "
                f"replica; it has {_cluster()}"
            )
            events.append(ReplicaDown(name, why, Failure.of(ReplicaLostError(why))))
        return events


def _connect(config: CommonConfig) -> bool:
    """Join the cluster that is named, or start a Ray of our own; returns whether it is our own.

    Raises `RefusedError`, and `ConnectionError`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    is_own = not address or address == "local"
    with sigterm_kept():
        if not is_own:
            _join(str(address))
        else:
            _start_ray(config)
    return is_own


def _join(address: str) -> None:
    """Join a cluster; asked by a plain connection first, since Ray itself would try for minutes."""
    if address != "auto":
        host, colon, port = address.rpartition(":")
        if not colon or not port.isdigit() or "://" in address:
            raise ConfigError(f"the Ray address {address!r} is no HOST:PORT of a cluster's head, nor 'auto'")
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_S_MAX).close()
        except OSError as error:
            raise RefusedError(
                f"no Ray answers at {address} ({error.strerror or error}); check --ray-address and RAY_ADDRESS, "
                "start a cluster there, or leave both out for a Ray of our own"
            ) from None
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (RuntimeError, ConnectionError) as error:
        raise RefusedError(
            f"the Ray cluster at {address} cannot be joined from here: {error}; one that asks for a token "
            "(Ray's default for `ray start`) needs RAY_AUTH_MODE=token and its token in this environment too"
        ) from None


def _start_ray(config: CommonConfig) -> None:
    host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    if not ip_address(host).is_loopback:
        raise RefusedError(
            f"a Ray of our own would listen on {host}: Ray was imported before voxmill could ask it for loopback; "
            "set RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 in the environment, or call ray.init yourself before the run"
        )
    cpus = float(os.cpu_count() or 1)
    if config.replicas != "auto":
        cpus = max(cpus, config.replicas * config.ray.cpus_per_replica)  # asked for by number: all get a place
    try:
        ray.init(
            address="local",
            num_cpus=floor(cpus + 0.999),
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # Ray raises bare ones when its processes do not come up in time
        raise InfraError(
            f"a Ray of our own did not start ({_first_line(error)}); run the same command again"
        ) from error


def _nodes() -> list[dict[str, float]]:
    """The resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _cluster() -> dict[str, float]:
    """The resources of all nodes."""
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]


def _fits(node: Mapping[str, float], needs: Mapping[str, float]) -> int:
    """How many replicas a node has room for."""
    return min((floor(node.get(name, 0.0) / need + 1e-9) for name, need in needs.items() if need > 0), default=0)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
