"""The state machine of all shards of a run; no I/O, no clock, no threads: time is passed in.

    pending --lease--> leased --committed--> committed
       ^                 |
       +--failed/lost/---+--tries used up--> failed
          expired

A commit is a fact of the store, so it is taken whichever attempt reports it; the failure of an attempt that
no longer holds the lease is refused by its id.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pipeline.errors import FailureKind
from pipeline.retry import jittered_wait_s
from pipeline.settings import RunningConfig
from pipeline.types import Shard, Task


class ShardState(StrEnum):
    """Where a shard stands."""

    PENDING = "pending"
    LEASED = "leased"
    COMMITTED = "committed"
    FAILED = "failed"

    @property
    def is_open(self) -> bool:
        """Whether the shard is still to be done."""
        return self in (ShardState.PENDING, ShardState.LEASED)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of a replica to try a shard until the deadline; renewed by signs of life."""

    shard_id: str
    attempt: str
    replica: str
    deadline_s: float


@dataclass(slots=True)
class _Entry:
    shard: Shard
    state: ShardState = ShardState.PENDING
    lease: Lease | None = None
    num_tries: dict[FailureKind, int] = field(default_factory=dict)
    num_deaths: int = 0
    why: str = ""


@dataclass(slots=True)
class _Held:
    """What a replica has leases for."""

    attempts: set[str] = field(default_factory=set)
    num_bytes: int = 0


class Ledger:
    """All shards that a run has to do.

    Shards are leased largest first. A replica that has one gets another to read ahead only while it would hold no more
    than its share of the bytes that are left: else the shard would wait behind its first one while others fall idle.
    A shard that was on a replica when it died is tried again alone on a replica, so that the next death shows whose
    fault it is.
    """

    def __init__(self, shards: Iterable[Shard], config: RunningConfig, rng: random.Random) -> None:
        self._config = config
        self._rng = rng
        self._entries = {shard.shard_id: _Entry(shard) for shard in shards}
        self._attempts: dict[str, Lease] = {}
        self._by_replica: dict[str, _Held] = {}
        self._states: Counter[ShardState] = Counter({ShardState.PENDING: len(self._entries)})
        self._ready = [(-entry.shard.size_bytes, shard_id) for shard_id, entry in self._entries.items()]
        heapq.heapify(self._ready)
        self._failed: dict[str, None] = {}
        self._bytes_left = sum(entry.shard.size_bytes for entry in self._entries.values())
        self._bytes_leased = 0
        self._suspects: list[tuple[int, str]] = []
        self._delayed: list[tuple[float, str]] = []

    @property
    def counts(self) -> Mapping[ShardState, int]:
        """How many shards are in each state."""
        return self._states

    @property
    def finished(self) -> bool:
        """Whether every shard is committed or failed."""
        return not self._states[ShardState.PENDING] and not self._states[ShardState.LEASED]

    def has_failed(self, shard_id: str) -> bool:
        """Whether the shard was given up."""
        return self._entries[shard_id].state is ShardState.FAILED

    def failures(self) -> Iterator[tuple[Shard, str]]:
        """The failed shards, with why."""
        for shard_id in self._failed:
            entry = self._entries[shard_id]
            yield entry.shard, entry.why

    def unfinished(self) -> Iterator[Shard]:
        """Shards neither committed nor failed."""
        for entry in self._entries.values():
            if entry.state.is_open:
                yield entry.shard

    def attempts_of(self, replica: str) -> list[str]:
        """Attempts that a replica holds a lease for."""
        held = self._by_replica.get(replica)
        return sorted(held.attempts) if held else []

    def has_ready(self, now_s: float, *, alone: bool) -> bool:
        """Whether a shard could be leased now, by a replica that holds none (`alone`) or some."""
        self._wake(now_s)
        return self._first(self._ready) is not None or (alone and self._first(self._suspects) is not None)

    def lease(self, now_s: float, replica: str, attempt: str, *, num_replicas: int = 1) -> Task | None:
        """Give the replica, one of so many, the largest shard that is ready, as `attempt`; None: there is none for it.

        A replica that holds none gets one whenever one is ready.
        """
        self._wake(now_s)
        held = self._by_replica.get(replica)
        if held is None:
            queue = self._ready if self._first(self._ready) is not None else self._suspects
        elif any(self._entries[self._attempts[other].shard_id].num_deaths for other in held.attempts):
            return None  # a suspect is tried alone
        else:
            queue = self._ready
        shard_id = self._first(queue)
        if shard_id is None:
            return None
        entry = self._entries[shard_id]
        if held is not None and not self._is_fair(held.num_bytes, entry.shard.size_bytes, num_replicas):
            return None
        heapq.heappop(queue)
        lease = Lease(shard_id, attempt, replica, now_s + self._config.lease_s)
        entry.lease = lease
        self._attempts[attempt] = lease
        held = self._by_replica.setdefault(replica, _Held())
        held.attempts.add(attempt)
        held.num_bytes += entry.shard.size_bytes
        self._bytes_leased += entry.shard.size_bytes
        self._move(entry, ShardState.LEASED)
        return Task(entry.shard, attempt)

    def renew(self, now_s: float, replica: str) -> None:
        """A sign of life: all leases of the replica run anew from now."""
        for attempt in self.attempts_of(replica):
            old = self._attempts[attempt]
            lease = Lease(old.shard_id, attempt, replica, now_s + self._config.lease_s)
            self._attempts[attempt] = lease
            self._entries[old.shard_id].lease = lease

    def expired(self, now_s: float) -> list[Lease]:
        """Leases past their deadline; they stay held until the replica is declared lost."""
        return [lease for lease in self._attempts.values() if lease.deadline_s < now_s]

    def committed(self, shard_id: str) -> bool:
        """A commit record stands for the shard; False when that was known already."""
        entry = self._entries[shard_id]
        if entry.state is ShardState.COMMITTED:
            return False
        self._release(entry)
        entry.why = ""
        self._move(entry, ShardState.COMMITTED)
        return True

    def failed(self, now_s: float, attempt: str, kind: FailureKind, why: str) -> bool:
        """An attempt failed; the shard is tried again or failed. False when the attempt holds no lease."""
        lease = self._attempts.get(attempt)
        if lease is None:
            return False
        entry = self._entries[lease.shard_id]
        self._release(entry)
        entry.num_tries[kind] = entry.num_tries.get(kind, 0) + 1
        entry.why = why
        self._again_or_fail(entry, now_s, kind, entry.num_tries[kind] >= self._tries_max(kind))
        return True

    def replica_lost(self, now_s: float, replica: str, why: str) -> list[Lease]:
        """A replica died or is given up: its shards are tried again, alone; those that killed too many are failed."""
        lost = [self._attempts[attempt] for attempt in self.attempts_of(replica)]
        for lease in lost:
            entry = self._entries[lease.shard_id]
            self._release(entry)
            entry.num_deaths += 1
            entry.why = why
            if entry.num_deaths >= self._config.replica_deaths_max:
                entry.why = (
                    f"{entry.num_deaths} replicas died with this shard (running.replica_deaths_max); last: {why}"
                )
            self._again_or_fail(entry, now_s, FailureKind.INFRA, entry.num_deaths >= self._config.replica_deaths_max)
        return lost

    def give_back(self, now_s: float, attempt: str) -> None:
        """An attempt ended without fault of its own (its replica left on purpose): ready again at once."""
        lease = self._attempts.get(attempt)
        if lease is not None:
            entry = self._entries[lease.shard_id]
            self._release(entry)
            self._move(entry, ShardState.PENDING)
            heapq.heappush(self._delayed, (now_s, lease.shard_id))

    def next_ready_s(self) -> float | None:
        """When the next delayed shard becomes ready; None when none is delayed."""
        return self._delayed[0][0] if self._delayed else None

    def _is_fair(self, held_bytes: int, more_bytes: int, num_replicas: int) -> bool:
        """Whether a replica that takes more holds no more than its share of what is left.

        How far the others are is not known in bytes: of what they hold, half counts as done.
        """
        left_bytes = self._bytes_left - (self._bytes_leased - held_bytes) / 2
        return (held_bytes + more_bytes) * num_replicas <= left_bytes

    def _tries_max(self, kind: FailureKind) -> int:
        return {
            FailureKind.INFRA: self._config.infra_attempts_max,
            FailureKind.DATA: self._config.data_attempts_max,
            FailureKind.UNKNOWN: self._config.unknown_attempts_max,
        }[kind]

    def _again_or_fail(self, entry: _Entry, now_s: float, kind: FailureKind, used_up: bool) -> None:
        if used_up:
            self._move(entry, ShardState.FAILED)
            return
        tries = entry.num_tries.get(kind, 0) + entry.num_deaths
        wait_s = jittered_wait_s(
            tries,
            backoff_s=self._config.retry_backoff_s,
            backoff_s_max=self._config.retry_backoff_s_max,
            rng=self._rng,
        )
        self._move(entry, ShardState.PENDING)
        heapq.heappush(self._delayed, (now_s + wait_s, entry.shard.shard_id))

    def _wake(self, now_s: float) -> None:
        while self._delayed and self._delayed[0][0] <= now_s:
            _, shard_id = heapq.heappop(self._delayed)
            entry = self._entries[shard_id]
            where = self._suspects if entry.num_deaths else self._ready
            heapq.heappush(where, (-entry.shard.size_bytes, shard_id))

    def _first(self, queue: list[tuple[int, str]]) -> str | None:
        """The largest shard of a queue; it stays there."""
        while queue:
            shard_id = queue[0][1]
            if self._entries[shard_id].state is ShardState.PENDING:
                return shard_id
            heapq.heappop(queue)  # a late commit came in between
        return None

    def _release(self, entry: _Entry) -> None:
        if entry.lease is not None:
            del self._attempts[entry.lease.attempt]
            held = self._by_replica[entry.lease.replica]
            held.attempts.discard(entry.lease.attempt)
            held.num_bytes -= entry.shard.size_bytes
            self._bytes_leased -= entry.shard.size_bytes
            if not held.attempts:
                del self._by_replica[entry.lease.replica]
            entry.lease = None

    def _move(self, entry: _Entry, state: ShardState) -> None:
        self._states[entry.state] -= 1
        self._states[state] += 1
        self._bytes_left += entry.shard.size_bytes * (state.is_open - entry.state.is_open)
        if state is ShardState.FAILED:
            self._failed[entry.shard.shard_id] = None
        elif entry.state is ShardState.FAILED:
            del self._failed[entry.shard.shard_id]
        entry.state = state
