"""A run in this process whose executor is watched: when shards were handed out and ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from jobs.display import PlainDisplay
from jobs.driver import Driver
from jobs.executor import Ended, Event, Executor, ReplicaUp
from jobs.finish import RunReport
from jobs.interrupts import Interrupts
from jobs.prepare import absolute, open_job
from jobs.replica import Failure, Setup
from jobs.run import make_executor
from pipeline.commit import Committed
from pipeline.config import Device, JobConfig
from pipeline.types import Task


@dataclass
class Watched(Executor):
    """Another executor, and when what was handed out and ended; times are of `time.perf_counter`.

    Its events are held until `num_replicas` are up, so that all begin at once though they start one after the other.
    """

    executor: Executor
    num_replicas: int = 1
    first_submit_s: dict[str, float] = field(default_factory=dict)
    ended_s: list[float] = field(default_factory=list)
    num_ended: Counter[str] = field(default_factory=Counter)
    outcomes: list[Committed | Failure] = field(default_factory=list)
    _held: list[Event] = field(default_factory=list)

    def pick_device(self, asked: Device | Literal["auto"]) -> Device:
        return self.executor.pick_device(asked)

    def start(self, setup: Setup) -> None:
        self.executor.start(setup)

    def adjust(self) -> int:
        return self.executor.adjust()

    def outlook(self) -> str:
        return self.executor.outlook()

    def submit(self, replica: str, task: Task) -> None:
        self.first_submit_s.setdefault(replica, time.perf_counter())
        self.executor.submit(replica, task)

    def poll(self, timeout_s: float) -> Sequence[Event]:
        events, self._held = [*self._held, *self.executor.poll(timeout_s)], []
        if not self.first_submit_s and sum(isinstance(event, ReplicaUp) for event in events) < self.num_replicas:
            self._held = events
            return []
        for event in events:
            if isinstance(event, Ended):
                self.ended_s.append(time.perf_counter())
                self.num_ended[event.replica] += 1
                self.outcomes.append(event.outcome)
        return events

    def give_up(self, replica: str) -> None:
        self.executor.give_up(replica)

    def close(self) -> None:
        self.executor.close()


def watched_run(config: JobConfig) -> tuple[RunReport, Watched]:
    """Do a job as `jobs.run.run_job` does; raises as it does. Replicas that are asked for by number begin at once."""
    config = absolute(config)
    with Interrupts() as interrupts:
        executor = Watched(make_executor(config), 1 if config.replicas == "auto" else config.replicas)
        try:
            job = open_job(config, executor.pick_device(config.device))
        except BaseException:
            executor.close()
            raise
        return Driver(job, executor, PlainDisplay(), interrupts).run(), executor
