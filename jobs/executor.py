"""Executors run tasks on replicas; the driver knows them by this protocol alone. The inline one stands here.

An executor only reports what happened, as events; what follows from it is the ledger's and the driver's matter.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch

from jobs.replica import Failure, Replica, ReplicaSetup
from pipeline.commit import Committed
from pipeline.config import Device
from pipeline.types import Task


@dataclass(frozen=True, slots=True)
class ReplicaUp:
    """A replica has loaded its codec and takes tasks."""

    replica: str
    where: str


@dataclass(frozen=True, slots=True)
class ReplicaDown:
    """A replica is gone; `failure` is set when it could not even start."""

    replica: str
    why: str
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Alive:
    """A replica's sign of life: audio seconds encoded so far, by attempt."""

    replica: str
    progress: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt ended."""

    replica: str
    task: Task
    outcome: Committed | Failure


Event = ReplicaUp | ReplicaDown | Alive | Ended


class Executor(Protocol):
    """Keeps replicas alive and runs tasks on them."""

    def pick_device(self) -> Device:
        """The device that `--device auto` means here."""
        ...

    def start(self, setup: ReplicaSetup) -> None:
        """Begin to start replicas; they are reported as they come up."""
        ...

    def adjust(self) -> int:
        """Start what is missing to the wanted number of replicas; returns that number."""
        ...

    def submit(self, replica: str, task: Task) -> None:
        """Run a task on a replica that is up; ends in an `Ended` or in the replica's `ReplicaDown`."""
        ...

    def poll(self, timeout_s: float) -> Sequence[Event]:
        """What happened; waits up to `timeout_s` for something to happen."""
        ...

    def give_up(self, replica: str) -> None:
        """Kill a replica that stalled; it is not reported again."""
        ...

    def close(self) -> None:
        """End all replicas now; attempts under way are left uncommitted."""
        ...


class InlineExecutor:
    """One replica in this process; its shards in threads, so that reading overlaps encoding here too."""

    def __init__(self, make_replica: Callable[[ReplicaSetup], Replica] = Replica) -> None:
        self._make_replica = make_replica
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._replica: Replica | None = None
        self._threads: ThreadPoolExecutor | None = None

    def pick_device(self) -> Device:
        """CUDA where torch sees one."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    def start(self, setup: ReplicaSetup) -> None:
        """Load the codec at once; its errors are raised."""
        self._replica = self._make_replica(setup)
        in_flight = setup.config.running.shards_in_flight
        self._threads = ThreadPoolExecutor(in_flight, thread_name_prefix="shard")
        self._events.put(ReplicaUp("inline", "this process"))

    def adjust(self) -> int:
        """Always one."""
        return 1

    def submit(self, replica: str, task: Task) -> None:
        """Run the task in a thread."""
        assert self._replica is not None
        assert self._threads is not None
        future = self._threads.submit(self._replica.process, task)
        future.add_done_callback(lambda done: self._ended(replica, task, done))

    def poll(self, timeout_s: float) -> Sequence[Event]:
        """Events so far, or the first within the timeout; always with a sign of life."""
        events: list[Event] = []
        try:
            events.append(self._events.get(timeout=timeout_s))
            while True:
                events.append(self._events.get_nowait())
        except queue.Empty:
            pass
        if self._replica is not None:
            events.append(Alive("inline", self._replica.progress()))
        return events

    def give_up(self, replica: str) -> None:
        """Threads cannot be killed: the run is stopped with what to do."""
        raise RuntimeError(
            f"replica {replica} makes no progress and the inline executor cannot replace it; "
            "run with --executor ray, or raise running.stall_s"
        )

    def close(self) -> None:
        """Stop at the next batch and wait for the threads."""
        if self._replica is not None and self._threads is not None:
            self._replica.stop()
            self._threads.shutdown(wait=True, cancel_futures=True)
            self._replica.close()

    def _ended(self, replica: str, task: Task, done: Future[Committed | Failure]) -> None:
        if not done.cancelled():
            self._events.put(Ended(replica, task, done.result()))
