"""The run: ledger -> executor -> ledger, until every shard is committed or failed, or somebody says stop."""

from __future__ import annotations

import os
import platform
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from uuid import uuid4

from jobs.denials import Denials
from jobs.display import Display, rejected
from jobs.executor import Alive, Ended, Event, Executor, ReplicaDown, ReplicaUp
from jobs.finish import RunReport, finish
from jobs.interrupts import Interrupts
from jobs.prepare import OpenJob
from jobs.replica import Failure, Mark
from jobs.view import RunView
from pipeline.commit import Committed
from pipeline.errors import FailureKind, InfraError, RefusedError, ReplicaLostError, StoreDeniedError
from pipeline.ledger import Ledger, ShardState
from pipeline.manifest import write_manifest
from pipeline.manifest_rows import ManifestRow
from pipeline.records import FailureRecord, InputRecord, State, StatusRecord
from pipeline.types import Shard, Task

WAITING_EVERY_S = 10.0
"""While no replica is up the run says so, and why, at this time and each time it has doubled."""

ADJUST_EVERY_S = 2.0
ADJUST_EVERY_S_MAX = 60.0
"""Between two looks at the number of replicas; longer while starts fail."""

FAILED_SHOWN_MAX = 100
"""A status names so many failed shards; the failure records have all."""


@dataclass
class _Replica:
    """What the driver knows of a replica that is up."""

    tasks: dict[str, Task] = field(default_factory=dict)
    marks: dict[str, Mark] = field(default_factory=dict)
    moved_s: dict[str, float] = field(default_factory=dict)


class Driver:
    """One driver's life on a job."""

    def __init__(
        self,
        job: OpenJob,
        executor: Executor,
        display: Display,
        interrupts: Interrupts,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._job = job
        self._running = job.config.running
        self._executor = executor
        self._display = display
        self._interrupts = interrupts
        self._clock = clock
        rng = rng or random.Random()  # noqa: S311 (jitter, no secret)
        self._ledger = Ledger(job.todo, self._running, rng)
        self._denials = Denials(self._running, rng)
        self._replicas: dict[str, _Replica] = {}
        self._idle: dict[str, None] = {}
        self._has_room: dict[str, None] = {}
        self._failed_starts = 0
        self._started_unix_s = time.time()
        now_s = clock()
        self._waiting_s = now_s + WAITING_EVERY_S
        self._tick_s = self._adjust_s = self._status_s = self._manifest_s = now_s
        self._view = RunView(
            num_shards=job.num_shards,
            num_done_before=job.num_done,
            bytes_todo=sum(shard.size_bytes for shard in job.todo),
            started_s=now_s,
        )
        if job.setup.chosen_from:
            before = job.manifest.rows.sum_counts(shard.shard_id for shard in job.listing.shards)
            self._view.num_frames_by_codebooks.update(before.num_frames_by_codebooks)

    def run(self) -> RunReport:
        """Do what is left to do; returns what came of it, after the place was looked at again.

        Raises `RefusedError` when no replica can start, `KeyboardInterrupt` at the second signal.
        """
        self._greet()
        self._interrupts.drains(True)
        try:
            if self._job.todo:
                self._executor.start(self._job.setup)
                self._view.num_replicas_wanted = self._executor.adjust()
                self._loop()
        except KeyboardInterrupt:
            self._put_status("interrupted")
            raise
        finally:
            self._executor.close()
            self._interrupts.drains(False)
        interrupted = self._interrupts.count > 0 and not self._ledger.finished
        wall_s = self._clock() - self._view.started_s
        try:
            report = finish(self._job, dict(self._why_not()), interrupted=interrupted, view=self._view, wall_s=wall_s)
        except (InfraError, StoreDeniedError):
            self._display.say(
                f"the output place cannot be looked at now; {self._view.num_done_before + self._view.num_committed} of "
                f"{self._job.num_shards} shards are committed as far as this run knows; the same command again does "
                "the rest"
            )
            raise
        self._view.num_committed = report.num_committed - self._view.num_done_before
        self._view.num_frames_by_codebooks = Counter(report.counts.num_frames_by_codebooks)
        self._put_status(report.state, report.failed)
        return report

    def _greet(self) -> None:
        job = self._job
        self._display.say(
            f"{job.num_shards} shards, {job.num_done} committed before, {len(job.todo)} to do; "
            f"{job.setup.describe()}; output {job.place.base}"
        )
        if job.unsafe_store:
            self._display.say("WARNING: unsafe store: put-if-absent is not enforced; two drivers may both commit")
        if job.failed_before:
            self._display.say(
                f"{len(job.failed_before)} shards were given up by an earlier run; --retry-failed takes them again"
            )

    def _loop(self) -> None:
        drain_until_s = None
        while not self._ledger.finished:
            now_s = self._clock()
            if self._interrupts.count:
                if drain_until_s is None:
                    drain_until_s = now_s + self._running.drain_s
                    self._view.draining = True
                    self._display.say(
                        f"stopping: shards under way have {self._running.drain_s:g} s to end; Ctrl-C again stops now"
                    )
                if now_s >= drain_until_s or not self._ledger.counts[ShardState.LEASED]:
                    return
            elif self._denials.lasted:
                if not self._ledger.counts[ShardState.LEASED]:
                    self._display.say(
                        f"stopping: the store denied access to every attempt of {self._running.denied_s_max:g} s "
                        f"(running.denied_s_max); renew the credentials; the last one: {self._denials.last}"
                    )
                    return
            elif not self._denials.hold(now_s):
                self._hand_out(now_s)
            for event in self._executor.poll(self._running.tick_s):
                self._take(event, self._clock())
            now_s = self._clock()
            if now_s < self._tick_s:
                continue
            self._tick_s = now_s + self._running.tick_s
            try:
                self._watch(now_s)
            except ReplicaLostError as error:  # of an executor that has no other: what is committed is reported
                self._display.say(str(error))
                return
            self._keep_up(now_s)

    def _hand_out(self, now_s: float) -> None:
        """One shard to each idle replica first, then one to read ahead.

        A thousand replicas end hundreds of shards a second, so only those are looked at that an event gave room; the
        others, whom the ledger has refused before, once a tick.
        """
        for name in list(self._idle) if self._ledger.has_ready(now_s, alone=True) else ():
            if not self._offer(now_s, name):
                return
        names, self._has_room = self._has_room, {}
        for depth in range(1, self._running.shards_in_flight):
            for name in names:
                replica = self._replicas.get(name)
                if replica is not None and len(replica.tasks) == depth:
                    if not self._ledger.has_ready(now_s, alone=False):
                        return
                    self._offer(now_s, name)

    def _offer(self, now_s: float, name: str) -> bool:
        """Submit the shard that the ledger has for a replica, if any."""
        num_replicas = max(len(self._replicas), self._view.num_replicas_wanted)
        task = self._ledger.lease(now_s, name, uuid4().hex, num_replicas=num_replicas)
        if task is None:
            return False
        replica = self._replicas[name]
        replica.tasks[task.attempt] = task
        replica.moved_s[task.attempt] = now_s
        if name in self._idle:
            del self._idle[name]
            self._has_room[name] = None
        self._executor.submit(name, task)
        return True

    def _take(self, event: Event, now_s: float) -> None:
        match event:
            case ReplicaUp(name, where):
                self._replicas[name] = _Replica()
                self._idle[name] = None
                self._failed_starts = 0
                self._display.say(f"replica {name} is up on {where}")
            case Alive(name, progress) if name in self._replicas:
                self._ledger.renew(now_s, name)
                self._note_progress(self._replicas[name], progress, now_s)
            case Ended(name, task, outcome):
                replica = self._replicas.get(name)
                if replica is not None:
                    for known in (replica.tasks, replica.marks, replica.moved_s):
                        known.pop(task.attempt, None)
                    (self._has_room if replica.tasks else self._idle)[name] = None
                self._settle(task, outcome, now_s)
            case ReplicaDown(name, why, failure):
                self._lose(name, why, now_s)
                if failure is not None:
                    self._count_failed_start(why, failure)
            case _:
                pass
        self._view.num_replicas = len(self._replicas)

    def _note_progress(self, replica: _Replica, progress: Mapping[str, Mark], now_s: float) -> None:
        for attempt, mark in progress.items():
            if attempt in replica.tasks and replica.marks.get(attempt) != mark:
                replica.marks[attempt] = mark
                replica.moved_s[attempt] = now_s

    def _settle(self, task: Task, outcome: Committed | Failure, now_s: float) -> None:
        shard = task.shard
        if isinstance(outcome, Failure) and outcome.error == StoreDeniedError.__name__:
            self._denials.note(now_s, outcome.message)
        else:
            self._denials.clear()
        if isinstance(outcome, Failure):
            if self._interrupts.count and outcome.error == "ShardCancelledError":
                self._ledger.give_back(now_s, task.attempt)
            elif self._ledger.failed(now_s, task.attempt, outcome.kind, f"{outcome.error}: {outcome.message}"):
                self._note_failure(task, outcome)
            return
        if not self._ledger.committed(shard.shard_id):
            return
        record = outcome.record
        self._job.manifest.rows[shard.shard_id] = ManifestRow(record, outcome.etag)
        self._view.num_committed += 1
        self._view.num_frames_by_codebooks.update(record.counts.num_frames_by_codebooks)
        self._view.bytes_done += shard.size_bytes
        if not outcome.ours:
            return
        self._view.num_ours += 1
        self._view.num_rows += record.counts.num_rows
        self._view.num_rejected += record.counts.num_rejected
        self._view.audio_s_committed += record.counts.audio_s
        if record.counts.num_rejected:
            self._display.say(f"{shard.uri}: {rejected(record.counts)}")

    def _note_failure(self, task: Task, failure: Failure) -> None:
        """Record why, and say it; a final failure is remembered for the next run."""
        final = self._ledger.has_failed(task.shard.shard_id)
        self._view.num_failed = self._ledger.counts[ShardState.FAILED]
        self._view.num_retries += not final
        end = "given up" if final else "will be tried again"
        self._display.say(f"{task.shard.uri}: {failure.kind} failure, {end}: {failure.error}: {failure.message}")
        record = FailureRecord(
            shard_id=task.shard.shard_id,
            input=InputRecord.of(task.shard),
            attempt=task.attempt,
            kind=failure.kind,
            error=failure.error,
            message=failure.message,
            traceback=failure.traceback,
            final=final,
        )
        place = self._job.place
        self._try(
            "the failure record",
            lambda: self._job.store.put(place.failure(task.shard.shard_id, task.attempt), record.to_bytes()),
        )

    def _lose(self, name: str, why: str, now_s: float) -> None:
        """A replica is gone: its attempts end, and their shards are tried again."""
        replica = self._replicas.pop(name, None)
        self._idle.pop(name, None)
        lost = self._ledger.replica_lost(now_s, name, why)
        if replica is None:
            return
        self._display.say(f"replica {name} is gone ({why}); {len(lost)} shards go back")
        for lease in lost:
            task = replica.tasks.get(lease.attempt)
            if task is not None:
                self._note_failure(task, Failure.of(ReplicaLostError(why)))

    def _count_failed_start(self, why: str, failure: Failure) -> None:
        self._failed_starts += 1
        self._display.say(f"a replica did not start: {why}")
        # Every wanted replica has its chance: one bad host must not end a run that the others have yet to join.
        chances = self._view.num_replicas_wanted
        if failure.kind is FailureKind.INFRA:
            chances = max(chances, self._running.replica_starts_max)
        if self._failed_starts >= chances and not self._replicas:
            raise RefusedError(f"no replica can start ({self._failed_starts} tried): {failure.message}")

    def _watch(self, now_s: float) -> None:
        """Give up replicas that show no sign of life, or no progress."""
        silent: dict[str, str] = {}
        for lease in self._ledger.expired(now_s):
            silent[lease.replica] = f"no sign of life for {self._running.lease_s:g} s (running.lease_s)"
        for name, replica in self._replicas.items():
            # Of its shards one is on the device and others may wait for it: the last that moved speaks for all.
            if replica.tasks and now_s - max(replica.moved_s.values()) > self._running.stall_s:
                silent[name] = f"no progress for {self._running.stall_s:g} s (running.stall_s)"
        for name, why in silent.items():
            held = ", ".join(sorted(task.shard.uri for task in self._replicas[name].tasks.values()))
            self._display.say(f"replica {name} is given up: {why}; it holds {held}")
            self._executor.give_up(name)
            self._lose(name, why, now_s)

    def _keep_up(self, now_s: float) -> None:
        """What is done once a tick, however many events there were: replicas, display, status, manifest."""
        self._has_room.update(dict.fromkeys(self._replicas))
        self._view.audio_s_under_way = sum(m.audio_s for r in self._replicas.values() for m in r.marks.values())
        self._view.mark(now_s)
        self._display.update(self._view, now_s)
        if now_s >= self._adjust_s and not self._interrupts.count:
            self._view.num_replicas_wanted = self._executor.adjust()
            self._adjust_s = now_s + min(ADJUST_EVERY_S_MAX, ADJUST_EVERY_S * 2 ** min(self._failed_starts, 8))
        if now_s >= self._waiting_s and not self._replicas:
            waited_s = now_s - self._view.started_s
            self._display.say(f"no replica is up after {waited_s:.0f} s: {self._executor.outlook()}")
            self._waiting_s = now_s + waited_s
        if now_s >= self._status_s:
            self._status_s = now_s + self._running.status_every_s
            self._put_status("running")
        if now_s >= self._manifest_s + self._running.manifest_every_s:
            self._manifest_s = now_s
            self._try("the manifest", lambda: write_manifest(self._job.store, self._job.place, self._job.manifest))

    def _why_not(self) -> list[tuple[Shard, str]]:
        return list(self._ledger.failures())

    def _put_status(self, state: State, failed: Mapping[str, str] | None = None) -> None:
        if failed is None:
            failed = {shard.uri: why for shard, why in self._why_not()}
            num_failed = len(failed) + len(self._job.failed_before)
        else:
            num_failed = len(failed)
        view, now_s = self._view, self._clock()
        record = StatusRecord(
            state=state,
            driver=f"{platform.node()} pid {os.getpid()}",
            updated_unix_s=time.time(),
            started_unix_s=self._started_unix_s,
            status_every_s=self._running.status_every_s,
            num_shards=view.num_shards,
            num_committed=view.num_done_before + view.num_committed,
            num_failed=num_failed,
            num_missing=len(self._job.listing.missing),
            num_replicas=view.num_replicas,
            num_rows=view.num_rows,
            num_rejected=view.num_rejected,
            audio_s=view.audio_s,
            times_real_time=round(view.times_real_time(now_s), 2),
            unsafe_store=self._job.unsafe_store,
            num_frames_by_codebooks=dict(sorted(view.num_frames_by_codebooks.items())),
            failed=dict(islice(failed.items(), FAILED_SHOWN_MAX)),
        )
        self._try("status.json", lambda: self._job.store.put(self._job.place.status, record.to_bytes()))

    def _try(self, what: str, put: Callable[[], object]) -> None:
        """Put derived data: when the store does not take it now, say so and go on; the commits have it all."""
        try:
            put()
        except (InfraError, StoreDeniedError) as error:
            self._display.say(f"{what} could not be written now: {error}")
