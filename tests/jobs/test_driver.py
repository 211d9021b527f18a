"""The driver against a scripted executor: each shard has a list of outcomes, the test asserts the exact tries."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import cycle

import pytest

from jobs.display import PlainDisplay, summary
from jobs.driver import Driver
from jobs.executor import Alive, Ended, ReplicaDown, ReplicaUp
from jobs.interrupts import Interrupts
from jobs.prepare import open_job
from jobs.replica import Failure
from jobs.view import RunView
from pipeline.commit import commit
from pipeline.config import load_config
from pipeline.errors import (
    InfraError,
    RefusedError,
    ReplicaLostError,
    StoreDeniedError,
    StoreUnavailableError,
    TarError,
)
from pipeline.records import CommitRecord, Counts, InputRecord
from tests.corpus import put_shards

COUNTS = Counts(num_samples=1, num_rows=1, num_rejected=0, num_frames=1, num_audio_samples=960, audio_s=0.06)


class Script:
    """What happens to each shard, try by try, on replicas that are just names; time moves only by `poll`."""

    def __init__(self, outcomes, replicas=("r0", "r1"), bad_starts=()):
        self.outcomes = {name: list(steps) for name, steps in outcomes.items()}
        self.now_s = 0.0
        self.tries = Counter()
        self.given_up = []
        self.submitted = []
        self.beside = {}
        self._fresh = list(replicas)
        self._bad_starts = list(bad_starts)
        self._events = []
        self._held = {}
        self._due_s = {}
        self.takes_s = lambda: 0.0
        self.job = None

    def clock(self):
        return self.now_s

    def pick_device(self, asked):
        return "cpu"

    def start(self, setup):
        self._events += [ReplicaDown("bad", str(error), Failure.of(error)) for error in self._bad_starts]
        self._events += [ReplicaUp(name, "nowhere") for name in self._fresh]

    def adjust(self):
        return len(self._fresh)

    def outlook(self):
        return "nothing"

    def submit(self, replica, task):
        name = task.shard.uri.rsplit("/", 1)[1]
        self.tries[name] += 1
        self.submitted.append(name)
        self.beside.setdefault(name, []).append(sorted(n for n, r in self._held.values() if r == replica))
        self._held[task.attempt] = (name, replica)
        self._due_s[task.attempt] = self.now_s + self.takes_s()
        step = self.outcomes[name].pop(0) if self.outcomes.get(name) else "commit"
        if step == "commit":
            self._events.append((replica, task, None))
        elif step == "die":
            self._events.append(ReplicaDown(replica, "segmentation fault"))
            self._events.append(ReplicaUp(f"{replica}'", "nowhere"))
        elif step != "hang":
            self._events.append((replica, task, step))

    def poll(self, timeout_s):
        self.now_s += 1.0
        events, self._events = self._events, []
        found = []
        for event in events:
            if isinstance(event, tuple):
                replica, task, error = event
                if task.attempt not in self._held:
                    continue  # its replica died meanwhile
                if self.now_s < self._due_s[task.attempt]:
                    self._events.append(event)
                    continue
                del self._held[task.attempt]
                outcome = self._commit(task) if error is None else Failure.of(error)
                found.append(Ended(replica, task, outcome))
            else:
                if isinstance(event, ReplicaDown):
                    self._held = {a: held for a, held in self._held.items() if held[1] != event.replica}
                found.append(event)
        replicas = {replica for _, replica in self._held.values()} - set(self.given_up)
        return found + [Alive(replica, {}) for replica in sorted(replicas)]

    def give_up(self, replica):
        self.given_up.append(replica)
        self._held = {a: held for a, held in self._held.items() if held[1] != replica}
        self._events.append(ReplicaUp(f"{replica}'", "nowhere"))

    def close(self):
        self._events = []

    def _commit(self, task):
        record = CommitRecord(
            shard_id=task.shard.shard_id,
            fingerprint=self.job.setup.fingerprint,
            input=InputRecord.of(task.shard),
            attempt=task.attempt,
            objects=(),
            counts=COUNTS,
        )
        return commit(self.job.store, self.job.place, record)


def drive(tmp_path, script, sizes=None, **running):
    sizes = sizes or {"a.tar": 30, "b.tar": 20, "c.tar": 10}
    if not (tmp_path / "in").exists():
        put_shards(str(tmp_path / "in"), {name: bytes(size) for name, size in sizes.items()})
    config = load_config(
        {
            "input": f"{tmp_path}/in/", "output": str(tmp_path / "out"), "codec": "calibrated:", "executor": "inline",
            "running": {"shards_in_flight": 2, "tick_s": 1, "retry_backoff_s": 0.1, **running},
        }
    )  # fmt: skip
    script.job = open_job(config, "cpu")
    with Interrupts() as interrupts:
        driver = Driver(script.job, script, PlainDisplay(), interrupts, clock=script.clock, rng=random.Random(1))
        return driver.run()


def records(tmp_path):
    return [json.loads(path.read_text()) for path in sorted((tmp_path / "out" / "failures").rglob("*.json"))]


def test_every_shard_is_tried_once_when_nothing_fails(tmp_path):
    script = Script({})
    report = drive(tmp_path, script)
    assert (report.exit_code, report.num_committed_now) == (0, 3)
    assert script.tries == {"a.tar": 1, "b.tar": 1, "c.tar": 1}
    assert script.submitted == ["a.tar", "b.tar", "c.tar"], "largest first, one to each replica before read-ahead"
    assert records(tmp_path) == []


def test_nothing_is_put_behind_a_shard_that_is_longer_than_its_share(tmp_path):
    script = Script({})
    script.takes_s = lambda: 5.0
    sizes = {"a.tar": 1000, "b.tar": 20, "c.tar": 10, "d.tar": 5}
    assert drive(tmp_path, script, sizes).exit_code == 0
    assert script.submitted == ["a.tar", "b.tar", "c.tar", "d.tar"]
    assert script.beside["c.tar"] == [["b.tar"]], "read ahead by the one with little to do"


def test_a_shard_that_comes_back_goes_to_a_replica_that_is_idle(tmp_path):
    script = Script({"a.tar": [StoreUnavailableError("503")]})
    script.takes_s = iter([5.0, 100.0, 5.0]).__next__
    assert drive(tmp_path, script, {"a.tar": 30, "b.tar": 20}).exit_code == 0
    assert script.tries == {"a.tar": 2, "b.tar": 1}
    assert script.beside["a.tar"] == [[], []], "not behind b, which is under way"
    assert script.now_s < 150


def test_infra_failures_are_tried_again_until_they_pass(tmp_path):
    script = Script({"b.tar": [StoreUnavailableError("503")] * 4})
    report = drive(tmp_path, script)
    assert report.exit_code == 0
    assert script.tries["b.tar"] == 5
    assert [(r["kind"], r["final"]) for r in records(tmp_path)] == [("infra", False)] * 4


def test_a_data_failure_is_tried_twice_then_given_up_and_the_run_goes_on(tmp_path):
    script = Script({"b.tar": [TarError("offset 512: cut")] * 9})
    report = drive(tmp_path, script)
    assert (report.exit_code, report.state, report.num_committed) == (1, "incomplete", 2)
    assert script.tries["b.tar"] == 2
    ((uri, why),) = report.failed.items()
    assert uri.endswith("b.tar")
    assert "offset 512" in why
    assert sorted(r["final"] for r in records(tmp_path)) == [False, True]


def test_a_shard_given_up_waits_for_retry_failed(tmp_path):
    drive(tmp_path, Script({"b.tar": [TarError("cut")] * 9}))
    script = Script({})
    assert drive(tmp_path, script).exit_code == 1
    assert script.tries == {}


def test_a_shard_that_failed_by_its_surroundings_is_taken_by_the_next_run(tmp_path):
    report = drive(tmp_path, Script({"b.tar": [StoreUnavailableError("503")] * 9}), infra_attempts_max=3)
    assert (report.exit_code, report.num_committed) == (1, 2)
    assert [r["final"] for r in records(tmp_path)].count(True) == 1
    script = Script({})
    assert drive(tmp_path, script).exit_code == 0
    assert script.tries == {"b.tar": 1}


def test_a_shard_that_killed_its_replicas_waits_for_retry_failed(tmp_path):
    drive(tmp_path, Script({"a.tar": ["die"] * 9}, replicas=("r0",)), replica_deaths_max=2)
    script = Script({})
    assert drive(tmp_path, script).exit_code == 1
    assert script.tries == {}


def test_a_shard_that_kills_its_replica_is_tried_alone_and_set_aside(tmp_path):
    script = Script({"a.tar": ["die"] * 9}, replicas=("r0",))
    report = drive(tmp_path, script, replica_deaths_max=3)
    assert report.exit_code == 1
    assert script.tries["a.tar"] == 3
    assert script.beside["a.tar"][1:] == [[], []], "after the first death nothing is beside it"
    assert "3 replicas died" in next(iter(report.failed.values()))
    assert report.num_committed == 2


def test_a_shard_without_progress_costs_its_replica_its_place(tmp_path):
    script = Script({"a.tar": ["hang"]}, replicas=("r0",))
    report = drive(tmp_path, script, stall_s=20)
    assert report.exit_code == 0
    assert script.given_up == ["r0"]
    assert script.tries["a.tar"] == 2


def test_a_stall_that_no_other_replica_can_mend_ends_the_run_with_a_report(tmp_path, capsys):
    class Alone(Script):
        def give_up(self, replica):
            raise ReplicaLostError("there is no other")

    report = drive(tmp_path, Alone({"a.tar": ["hang"]}, replicas=("r0",)), stall_s=20, shards_in_flight=1)
    assert (report.exit_code, report.state) == (1, "incomplete")
    assert [uri.rsplit("/", 1)[1] for uri in report.unfinished] == ["a.tar", "b.tar", "c.tar"]
    said = capsys.readouterr().err
    assert f"running.stall_s); it holds {tmp_path}/in/a.tar" in said
    assert "there is no other" in said


def test_a_replica_without_a_sign_of_life_loses_its_lease(tmp_path):
    class Silent(Script):
        def poll(self, timeout_s):
            return [e for e in super().poll(timeout_s) if not (isinstance(e, Alive) and e.replica == "r0")]

    script = Silent({"a.tar": ["hang"]}, replicas=("r0",))
    report = drive(tmp_path, script, lease_s=5)
    assert report.exit_code == 0
    assert script.given_up == ["r0"]
    assert script.tries["a.tar"] == 2


def test_a_replica_that_cannot_start_for_a_reason_that_stays_refuses_the_run(tmp_path):
    script = Script({}, replicas=(), bad_starts=[ValueError("no such precision on cpu")])
    with pytest.raises(RefusedError, match="no such precision"):
        drive(tmp_path, script)


def test_starts_that_fail_by_surroundings_are_tried_a_set_number_of_times(tmp_path):
    errors = [InfraError("hub away")] * 2
    assert drive(tmp_path, Script({}, bad_starts=errors), replica_starts_max=3).exit_code == 0
    with pytest.raises(RefusedError, match=r"3 tried.*hub away"):
        drive(tmp_path / "other", Script({}, replicas=(), bad_starts=[*errors, *errors]), replica_starts_max=3)


def test_a_foreign_commit_of_another_version_is_not_called_complete(tmp_path):
    class Meddler(Script):
        def _commit(self, task):
            done = super()._commit(task)
            path = tmp_path / "out" / "commits" / f"{task.shard.shard_id}.json"
            record = json.loads(path.read_text())
            record["input"]["etag"] = "another"
            path.write_text(json.dumps(record))
            return done

    report = drive(tmp_path, Meddler({}), sizes={"a.tar": 1})
    assert report.exit_code == 1
    assert "--redo-changed" in next(iter(report.failed.values()))


DENIED = StoreDeniedError("ExpiredToken")


def test_while_the_store_denies_everything_it_is_asked_rarely_and_for_so_long_only(tmp_path, capsys):
    script = Script({name: [DENIED] * 99 for name in ("a.tar", "b.tar", "c.tar")})
    report = drive(tmp_path, script, denied_s_max=300, retry_backoff_s=1)
    assert (report.exit_code, len(report.unfinished)) == (1, 3)
    assert 5 < script.tries.total() < 40
    assert 300 < script.now_s < 400
    assert "renew the credentials" in capsys.readouterr().err
    assert drive(tmp_path, Script({})).exit_code == 0


def test_denied_attempts_that_overlap_stop_the_run_too(tmp_path):
    """Where only writes are denied, an attempt costs minutes, and one is always under way."""
    script = Script({f"{n:02d}.tar": [DENIED] * 99 for n in range(40)}, replicas=("r0", "r1", "r2", "r3"))
    script.takes_s = cycle([200.0, 350.0, 270.0]).__next__
    report = drive(tmp_path, script, sizes={f"{n:02d}.tar": n + 1 for n in range(40)}, denied_s_max=300)
    assert (report.exit_code, len(report.unfinished)) == (1, 40)
    assert script.now_s < 1500


def test_denials_that_end_leave_no_trace(tmp_path):
    script = Script({name: [DENIED] * 3 for name in ("a.tar", "b.tar", "c.tar")})
    assert drive(tmp_path, script, denied_s_max=300).exit_code == 0
    assert script.tries.total() == 12


def test_one_shard_that_is_denied_stops_no_others(tmp_path):
    script = Script({"a.tar": [DENIED] * 99})
    report = drive(tmp_path, script, infra_attempts_max=9)
    assert (report.num_committed, report.failed.keys()) == (2, {f"{tmp_path}/in/a.tar"})
    assert script.tries["a.tar"] == 9


def test_the_line_of_numbers():
    view = RunView(num_shards=10, bytes_todo=100, started_s=0.0, num_committed=2, bytes_done=20, num_replicas=3)
    view.audio_s_committed, view.num_rows, view.num_rejected, view.num_failed = 7200.0, 50, 1, 1
    line = summary(view, 100.0)
    for part in ("shards 2/10", "failed 1", "audio 2.00 h", "72.0x real time", "rejects 1", "ETA 0:06:40"):
        assert part in line
