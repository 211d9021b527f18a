"""The ledger: every rule of leases, retries and blame, with time passed in."""

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pipeline.errors import FailureKind
from pipeline.ledger import Ledger, ShardState
from pipeline.settings import RunningConfig
from pipeline.types import Shard

CONFIG = RunningConfig(
    lease_s=10,
    data_attempts_max=2,
    unknown_attempts_max=3,
    infra_attempts_max=4,
    replica_deaths_max=3,
    retry_backoff_s=1,
    retry_backoff_s_max=8,
)
FAR_S = 1e6


def ledger_of(*sizes: int, config: RunningConfig = CONFIG) -> tuple[Ledger, list[Shard]]:
    shards = [Shard(f"/in/shard-{index}.tar", size, "etag") for index, size in enumerate(sizes)]
    return Ledger(shards, config, random.Random(7)), shards


def test_largest_shards_are_leased_first():
    ledger, _ = ledger_of(10, 30, 20)
    sizes = [ledger.lease(0, "r", f"a{n}").shard.size_bytes for n in range(3)]
    assert sizes == [30, 20, 10]
    assert ledger.lease(0, "r", "a4") is None


@pytest.mark.parametrize(("kind", "tries"), [(FailureKind.DATA, 2), (FailureKind.UNKNOWN, 3), (FailureKind.INFRA, 4)])
def test_a_shard_is_failed_after_exactly_the_tries_of_its_kind(kind, tries):
    ledger, (shard,) = ledger_of(1)
    now_s = 0.0
    for n in range(tries):
        assert not ledger.finished
        task = ledger.lease(now_s, "r", f"a{n}")
        assert task is not None
        assert ledger.failed(now_s, task.attempt, kind, "broken tar")
        now_s += 100
    assert ledger.finished
    assert list(ledger.failures()) == [(shard, "broken tar")]


def test_a_failed_attempt_waits_for_its_backoff():
    ledger, _ = ledger_of(1)
    ledger.failed(0, ledger.lease(0, "r", "a").attempt, FailureKind.INFRA, "store away")
    ready_s = ledger.next_ready_s()
    assert 0 < ready_s <= 2
    assert ledger.lease(ready_s - 1e-6, "r", "b") is None
    assert ledger.lease(ready_s, "r", "b") is not None


def test_the_late_failure_of_an_attempt_without_a_lease_is_refused():
    ledger, _ = ledger_of(1)
    ledger.lease(0, "r1", "old")
    ledger.replica_lost(1, "r1", "gone")
    ledger.lease(FAR_S, "r2", "new")
    assert not ledger.failed(FAR_S, "old", FailureKind.DATA, "late")
    assert ledger.counts[ShardState.LEASED] == 1


def test_a_commit_counts_whichever_attempt_reports_it_and_once():
    ledger, (shard,) = ledger_of(1)
    ledger.lease(0, "r1", "old")
    ledger.replica_lost(1, "r1", "gone")
    ledger.lease(FAR_S, "r2", "new")
    assert ledger.committed(shard.shard_id)
    assert not ledger.committed(shard.shard_id)
    assert ledger.finished
    assert not ledger.failed(FAR_S, "new", FailureKind.DATA, "lost the race")
    assert ledger.counts[ShardState.COMMITTED] == 1


def test_a_commit_of_a_shard_that_was_given_up_counts_too():
    ledger, (shard,) = ledger_of(1, config=CONFIG.model_copy(update={"data_attempts_max": 1}))
    ledger.failed(0, ledger.lease(0, "r", "a").attempt, FailureKind.DATA, "bad")
    assert ledger.committed(shard.shard_id)
    assert list(ledger.failures()) == []


def test_leases_expire_without_a_sign_of_life():
    ledger, _ = ledger_of(1, 2)
    ledger.lease(0, "r1", "a")
    ledger.lease(0, "r2", "b")
    ledger.renew(9, "r1")
    assert [lease.replica for lease in ledger.expired(11)] == ["r2"]
    assert {lease.replica for lease in ledger.expired(20)} == {"r1", "r2"}


def test_a_suspect_is_tried_alone_so_that_the_next_death_shows_whose_fault_it_is():
    ledger, (poison, innocent) = ledger_of(20, 10)
    assert ledger.lease(0, "r1", "a").shard == poison
    assert ledger.lease(0, "r1", "b").shard == innocent
    ledger.replica_lost(1, "r1", "segfault")
    now_s = 1000.0
    first = ledger.lease(now_s, "r2", "c")
    assert first.shard == poison
    assert ledger.lease(now_s, "r2", "d") is None, "nothing is put beside a suspect"
    assert ledger.lease(now_s, "r3", "e").shard == innocent
    ledger.committed(innocent.shard_id)
    ledger.replica_lost(now_s, "r2", "segfault")
    assert ledger.lease(2000, "r4", "f").shard == poison
    ledger.replica_lost(2000, "r4", "segfault")
    assert ledger.finished
    ((failed, why),) = ledger.failures()
    assert failed == poison
    assert "3 replicas died" in why
    assert "segfault" in why


def test_a_suspect_is_not_put_beside_another_shard():
    ledger, _ = ledger_of(20, 10)
    ledger.lease(0, "r1", "a")
    ledger.replica_lost(0, "r1", "gone")
    assert ledger.lease(100, "r2", "b").shard.size_bytes == 10
    assert ledger.lease(100, "r2", "c") is None
    assert ledger.lease(100, "r3", "d").shard.size_bytes == 20


def test_given_back_is_ready_at_once_and_costs_no_try():
    ledger, _ = ledger_of(1, config=CONFIG.model_copy(update={"infra_attempts_max": 1}))
    ledger.give_back(5, ledger.lease(0, "r", "a").attempt)
    assert ledger.lease(5, "r", "b") is not None


def test_a_replica_reads_ahead_only_within_its_share_of_what_is_left():
    ledger, (giant, *_) = ledger_of(1000, 20, 10, 5)
    assert ledger.lease(0, "r1", "a", num_replicas=2).shard == giant
    assert ledger.lease(0, "r2", "b", num_replicas=2).shard.size_bytes == 20
    assert ledger.lease(0, "r1", "c", num_replicas=2) is None, "it would wait behind the giant"
    assert ledger.lease(0, "r2", "d", num_replicas=2).shard.size_bytes == 10
    ledger.committed(giant.shard_id)
    assert ledger.lease(0, "r1", "e", num_replicas=2).shard.size_bytes == 5, "one that holds none always gets one"


def test_the_last_shards_of_equal_size_are_left_for_those_who_fall_idle_first():
    ledger, _ = ledger_of(*[10] * 7)
    for name in "abc":
        assert ledger.lease(0, name, name, num_replicas=3)
    assert ledger.lease(0, "a", "a2", num_replicas=3), "4 are ready"
    assert ledger.lease(0, "b", "b2", num_replicas=3) is None, "3 are: one for each to take when it is idle"


def test_a_replica_that_is_alone_reads_ahead_to_the_end():
    ledger, _ = ledger_of(10, 1)
    assert ledger.lease(0, "r", "a", num_replicas=1)
    assert ledger.lease(0, "r", "b", num_replicas=1)


class LedgerMachine(RuleBasedStateMachine):
    """Any order of events: no shard is lost, none is leased twice at once, and the run comes to its end."""

    def __init__(self):
        super().__init__()
        self.ledger, self.shards = ledger_of(5, 4, 3, 2, 1)
        self.now_s = 0.0
        self.leased: dict[str, tuple[str, str]] = {}
        self.attempts = 0

    @rule(replica=st.sampled_from("xyz"), num_replicas=st.integers(1, 9))
    def lease(self, replica, num_replicas):
        self.attempts += 1
        attempt = f"a{self.attempts}"
        is_idle = replica not in {holder for _, holder in self.leased.values()}
        is_ready = self.ledger.has_ready(self.now_s, alone=is_idle)
        task = self.ledger.lease(self.now_s, replica, attempt, num_replicas=num_replicas)
        assert task is None or is_ready
        if is_idle:
            assert (task is not None) == is_ready, "a replica that holds none gets one whenever one is ready"
        if task is not None:
            assert task.shard.shard_id not in {shard_id for shard_id, _ in self.leased.values()}
            self.leased[attempt] = (task.shard.shard_id, replica)

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds):
        self.now_s += seconds

    @rule(data=st.data(), kind=st.sampled_from(FailureKind))
    def fail(self, data, kind):
        if self.leased:
            attempt = data.draw(st.sampled_from(sorted(self.leased)))
            del self.leased[attempt]
            assert self.ledger.failed(self.now_s, attempt, kind, "why")

    @rule(data=st.data())
    def commit(self, data):
        shard = data.draw(st.sampled_from(self.shards))
        self.leased = {a: held for a, held in self.leased.items() if held[0] != shard.shard_id}
        self.ledger.committed(shard.shard_id)

    @rule(replica=st.sampled_from("xyz"))
    def lose(self, replica):
        expected = sorted(a for a, held in self.leased.items() if held[1] == replica)
        assert sorted(lease.attempt for lease in self.ledger.replica_lost(self.now_s, replica, "gone")) == expected
        self.leased = {a: held for a, held in self.leased.items() if held[1] != replica}

    @invariant()
    def every_shard_is_in_one_state(self):
        assert sum(self.ledger.counts.values()) == len(self.shards)
        assert self.ledger.counts[ShardState.LEASED] == len(self.leased)
        assert all(count >= 0 for count in self.ledger.counts.values())

    @invariant()
    def what_is_left_is_counted_in_bytes(self):
        assert self.ledger._bytes_left == sum(shard.size_bytes for shard in self.ledger.unfinished())
        leased = {shard_id for shard_id, _ in self.leased.values()}
        assert self.ledger._bytes_leased == sum(s.size_bytes for s in self.shards if s.shard_id in leased)
        assert len(list(self.ledger.failures())) == self.ledger.counts[ShardState.FAILED]

    def teardown(self):
        for attempt in list(self.leased):
            self.ledger.failed(self.now_s, attempt, FailureKind.INFRA, "end")
        for n in range(100):
            if self.ledger.finished:
                return
            self.now_s += 1000
            task = self.ledger.lease(self.now_s, f"last{n}", f"z{n}")
            assert task is not None, "a shard is neither ready, leased, committed nor failed"
            self.ledger.committed(task.shard.shard_id)
        raise AssertionError("the ledger does not come to its end")


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
