"""Executors run tasks on replicas; the driver knows them by this protocol alone. The inline one stands here.

An executor only reports what happened, as events; what follows from it is the ledger's and the driver's matter.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from jobs.replica import Failure, Mark, Replica, Setup
from pipeline.commit import Committed
from pipeline.config import Device
from pipeline.errors import ConfigError, ReplicaLostError
from pipeline.types import Task

CLOSE_S_MAX = 5.0
"""The inline executor waits so long for its threads when it is closed."""


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
    """A replica's sign of life: how far its attempts are."""

    replica: str
    progress: Mapping[str, Mark]


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt ended."""

    replica: str
    task: Task
    outcome: Committed | Failure


Event = ReplicaUp | ReplicaDown | Alive | Ended


class Executor(Protocol):
    """Keeps replicas alive and runs tasks on them."""

    def pick_device(self, asked: Device | Literal["auto"]) -> Device:
        """The device that replicas will have. Raises `ConfigError` when the one asked for cannot be had here."""
        ...

    def start(self, setup: Setup) -> None:
        """Begin to start replicas; they are reported as they come up."""
        ...

    def adjust(self) -> int:
        """Start what is missing to the wanted number of replicas; returns that number."""
        ...

    def outlook(self) -> str:
        """What a run without a replica is waiting for."""
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

    def __init__(self, make_replica: Callable[[Setup], Replica] = Replica) -> None:
        self._make_replica = make_replica
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._replica: Replica | None = None
        self._threads: list[threading.Thread] = []

    def pick_device(self, asked: Device | Literal["auto"]) -> Device:
        """`auto` is CUDA where torch sees one."""
        has_cuda = torch.cuda.is_available()
        if asked == "cuda" and not has_cuda:
            raise ConfigError("device is cuda, but torch sees no CUDA device here; use --device cpu, or another host")
        return asked if asked != "auto" else "cuda" if has_cuda else "cpu"

    def start(self, setup: Setup) -> None:
        """Load the codec at once; its errors are raised."""
        self._replica = self._make_replica(setup)
        self._events.put(ReplicaUp("inline", "this process"))

    def adjust(self) -> int:
        """Always one."""
        return 1

    def outlook(self) -> str:
        """Never asked: the one replica is up from the start."""
        return "the codec is being loaded"

    def submit(self, replica: str, task: Task) -> None:
        """Run the task in a thread; the driver bounds how many there are."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        # Daemons: a shard that hangs must not keep a run from ending; what it did not commit does not count.
        thread = threading.Thread(target=self._run, args=(replica, task), name=f"shard {task.attempt}", daemon=True)
        self._threads.append(thread)
        thread.start()

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
        """Threads cannot be killed: raises `ReplicaLostError` with what to do."""
        raise ReplicaLostError(
            f"the inline executor cannot replace replica {replica}, so the run ends; "
            "run again with --executor ray, or raise running.stall_s"
        )

    def close(self) -> None:
        """Stop the shards under way at their next batch; those that do not are left behind."""
        if self._replica is not None:
            self._replica.stop()
            deadline_s = time.monotonic() + CLOSE_S_MAX
            for thread in self._threads:
                thread.join(max(0.0, deadline_s - time.monotonic()))
            self._replica.close()

    def _run(self, replica: str, task: Task) -> None:
        assert self._replica is not None
        try:
            outcome = self._replica.process(task)
        except BaseException as error:  # a codec's SystemExit would end this thread alone, and nobody would know
            outcome = Failure.of(error)
        self._events.put(Ended(replica, task, outcome))
