"""Replicas that are only simulated, on a clock that is only simulated, for the real driver and the real ledger."""

from __future__ import annotations

import heapq
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Literal

from jobs.driver import Driver
from jobs.executor import Alive, Ended, Event, ReplicaDown, ReplicaUp
from jobs.finish import RunReport
from jobs.interrupts import Interrupts
from jobs.prepare import OpenJob, open_job
from jobs.replica import Failure, Mark, Setup
from jobs.view import RunView
from pipeline.commit import Committed, commit
from pipeline.config import Device, JobConfig, load_config
from pipeline.errors import StoreUnavailableError
from pipeline.layout import OutputPlace, token_path
from pipeline.records import CommitRecord, Counts, InputRecord, ObjectRecord
from pipeline.storage import Store
from pipeline.types import Task

FRAME_SIZE, SAMPLE_RATE_HZ = 960, 16_000
WAV_BYTES_PER_S = 2 * SAMPLE_RATE_HZ
CLIP_S = 12.0
"""Of audio, on average, for the counts in the records."""

SHA256 = "0123456789abcdef" * 4


@dataclass(frozen=True, slots=True)
class FleetConfig:
    """What the replicas are like.

    A shard keeps the device of its replica for its audio's time over the replica's speed, which is drawn evenly from
    `speed` +- `speed_spread` (a share). Replicas come up within `start_s`. `lead_s` pass before a shard's first batch
    is ready and `put_s` after its last one until its commit stands: both beside the device, behind another shard if
    there is one. `failure_rate` is the share of attempts that fail half-way, `deaths_per_hour` of one replica.
    """

    num_replicas: int
    speed: float = 1000.0
    speed_spread: float = 0.0
    lead_s: float = 0.0
    put_s: float = 0.0
    start_s: float = 0.0
    failure_rate: float = 0.0
    deaths_per_hour: float = 0.0
    seed: int = 0


@dataclass
class _Replica:
    speed: float
    free_s: float
    tasks: dict[str, Task] = field(default_factory=dict)


class Fleet:
    """An executor whose time moves only by `poll`. Implements `jobs.executor.Executor`.

    A replica encodes one batch at a time, of its oldest shard that has one ready. Data is ready in the order in which
    shards were handed out, and faster than it is encoded: so the device does one shard after the other.
    `cpu_s` is the processor time spent in here, which is not the driver's; at `closed_s` of it the run was over.
    """

    def __init__(self, config: FleetConfig) -> None:
        self._config = config
        self._rng = random.Random(config.seed)
        self._job: OpenJob
        self._replicas: dict[str, _Replica] = {}
        self._events: list[tuple[float, int, str, object]] = []
        self._order = count()
        self.speeds: list[float] = []
        self.starts_s: list[float] = []
        self.now_s = 0.0
        self.busy_s = 0.0
        self.cpu_s = 0.0
        self.closed_s = 0.0
        self.num_attempts = 0
        self.num_events: Counter[str] = Counter()

    def opened(self, job: OpenJob) -> None:
        """The job whose shards will come."""
        self._job = job

    def clock(self) -> float:
        """Simulated seconds."""
        return self.now_s

    def pick_device(self, asked: Device | Literal["auto"]) -> Device:  # noqa: ARG002 - the protocol's
        """None is there."""
        return "cpu"

    def start(self, setup: Setup) -> None:  # noqa: ARG002 - the protocol's
        """All replicas come up within `start_s`."""
        config = self._config
        for number in range(config.num_replicas):
            self.speeds.append(config.speed * self._rng.uniform(1 - config.speed_spread, 1 + config.speed_spread))
            self.starts_s.append(self._rng.uniform(0.0, config.start_s))
            self._expect(self.starts_s[-1], f"{number}", "up")

    def adjust(self) -> int:
        """As many as the config says, always."""
        return self._config.num_replicas

    def outlook(self) -> str:
        """Never asked for long."""
        return "they start"

    def submit(self, replica: str, task: Task) -> None:
        """Put a shard behind those that the replica has."""
        began_s = time.process_time()
        state, config = self._replicas[replica], self._config
        state.tasks[task.attempt] = task
        self.num_attempts += 1
        work_s = task.shard.size_bytes / WAV_BYTES_PER_S / state.speed
        fails = self._rng.random() < config.failure_rate
        start_s = max(state.free_s, self.now_s + config.lead_s)
        state.free_s = start_s + (work_s / 2 if fails else work_s)
        self.busy_s += state.free_s - start_s
        self._expect(state.free_s + config.put_s - self.now_s, replica, (task, fails))
        self.cpu_s += time.process_time() - began_s

    def poll(self, timeout_s: float) -> Sequence[Event]:
        """Move on to the next thing that happens, or by the timeout: as if the driver were woken by each."""
        began_s = time.process_time()
        until_s = self.now_s + timeout_s
        events: list[Event] = []
        if self._events and self._events[0][0] <= until_s:
            self.now_s, _, replica, what = heapq.heappop(self._events)
            events = self._happens(replica, what)
        else:
            self.now_s = until_s
        self.num_events.update(type(event).__name__ for event in events)
        self.cpu_s += time.process_time() - began_s
        return events

    def give_up(self, replica: str) -> None:
        """It comes again."""
        del self._replicas[replica]
        self._expect(self._config.start_s, f"{replica}'", "up")

    def close(self) -> None:
        """Nothing goes on."""
        self._events.clear()
        self.closed_s = time.process_time()

    def ideal_s(self, audio_s: Sequence[float]) -> float:
        """No order of these shards ends sooner, were there no waits and no faults."""
        pairs = zip(self.speeds, self.starts_s, strict=True)
        all_busy_s = (sum(audio_s) + sum(speed * start_s for speed, start_s in pairs)) / sum(self.speeds)
        return max(all_busy_s, max(audio_s) / max(self.speeds))

    def _expect(self, after_s: float, replica: str, what: object) -> None:
        heapq.heappush(self._events, (self.now_s + after_s, next(self._order), replica, what))

    def _happens(self, replica: str, what: object) -> list[Event]:
        config, state = self._config, self._replicas.get(replica)
        if what == "up":
            self._replicas[replica] = _Replica(self.speeds[int(replica.rstrip("'"))], self.now_s)
            self._expect(self._job.config.running.heartbeat_s, replica, "alive")
            if config.deaths_per_hour:
                self._expect(self._rng.expovariate(config.deaths_per_hour / 3600), replica, "down")
            return [ReplicaUp(replica, "nowhere")]
        if state is None:
            return []  # of a replica that is gone
        if what == "alive":
            self._expect(self._job.config.running.heartbeat_s, replica, "alive")
            steps = int(self.now_s)
            return [Alive(replica, {attempt: Mark(0.0, steps) for attempt in state.tasks})]
        if what == "down":
            self.busy_s -= max(0.0, state.free_s - self.now_s)
            del self._replicas[replica]
            self._expect(config.start_s, f"{replica}'", "up")
            return [ReplicaDown(replica, "taken back")]
        assert isinstance(what, tuple)
        task, fails = what
        del state.tasks[task.attempt]
        return [Ended(replica, task, Failure.of(StoreUnavailableError("503")) if fails else self.finished(task))]

    def finished(self, task: Task) -> Committed:
        """A shard was encoded: its commit."""
        job = self._job
        return commit_at_once(job.store, job.place, job.setup.fingerprint, task)


class Silent:
    """Implements `jobs.display.Display`."""

    def update(self, view: RunView, now_s: float) -> None:
        """Show nothing."""

    def say(self, line: str) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Leave nothing."""


def commit_at_once(store: Store, place: OutputPlace, fingerprint: str, task: Task) -> Committed:
    """Put the commit record that a shard of so many bytes of WAV would have; its one object is named, not put."""
    return commit(store, place, record_of(fingerprint, task))


def record_of(fingerprint: str, task: Task, *, sha256: str = SHA256) -> CommitRecord:
    """The commit record of a shard of WAV, with one object of this hash."""
    shard_id = task.shard.shard_id
    audio_s = task.shard.size_bytes / WAV_BYTES_PER_S
    num_rows = max(1, round(audio_s / CLIP_S))
    num_audio_samples = round(audio_s * SAMPLE_RATE_HZ)
    counts = Counts(
        num_samples=num_rows,
        num_rows=num_rows,
        num_rejected=0,
        num_frames=-(-num_audio_samples // FRAME_SIZE),
        num_audio_samples=num_audio_samples,
        audio_s=audio_s,
    )
    path = token_path("tokens", shard_id, task.attempt)
    return CommitRecord(
        shard_id=shard_id,
        fingerprint=fingerprint,
        input=InputRecord.of(task.shard),
        attempt=task.attempt,
        objects=(ObjectRecord(path=path, num_bytes=task.shard.size_bytes // 10, sha256=sha256),),
        counts=counts,
    )


@dataclass(frozen=True, slots=True)
class Drive:
    """A run that was driven to its end: what came of it, and the driver's own processor time."""

    report: RunReport
    fingerprint: str
    open_cpu_s: float
    loop_cpu_s: float
    finish_cpu_s: float

    @property
    def cpu_s(self) -> float:
        """From the listing to the last deletion."""
        return self.open_cpu_s + self.loop_cpu_s + self.finish_cpu_s


def drive(fleet: Fleet, config: JobConfig, store: Store | None = None) -> Drive:
    """Open a job and run it on the fleet; its places are in `store`, or where its URIs say."""
    began_s = time.process_time()
    job = open_job(config, "cpu", stores=None if store is None else lambda _: store)
    fleet.opened(job)
    open_s = time.process_time()
    driver = Driver(job, fleet, Silent(), Interrupts(), clock=fleet.clock, rng=random.Random(1))
    report = driver.run()
    ended_s = time.process_time()
    return Drive(
        report=report,
        fingerprint=job.setup.fingerprint,
        open_cpu_s=open_s - began_s,
        loop_cpu_s=fleet.closed_s - open_s - fleet.cpu_s,
        finish_cpu_s=ended_s - fleet.closed_s,
    )


def job_config(base: str, **running: object) -> JobConfig:
    """A job on shards below `base`/in, with its output beside them."""
    values: Mapping[str, object] = {
        "input": f"{base}/in/",
        "output": f"{base}/out",
        "codec": "calibrated:",
        "running": running,
    }
    return load_config(values)


def peak_bytes() -> int:
    """Peak resident memory of this process alone; `ru_maxrss` would begin at that of the one that started it."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return int(status["VmHWM"].split()[0]) << 10
