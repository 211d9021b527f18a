"""The judge of histories finds each violation in a history made by hand, and none in a sound one."""

from __future__ import annotations

import hashlib
import json

import pytest

from tests.chaos.history import Event, events_of, judge
from tests.faults.exchanges import Exchange

SHARD = "a-00000000"
X, Y, Z = "a" * 32, "b" * 32, "c" * 32
FENCE = b'{"fence": true}'


def path(attempt):
    return f"tokens/{SHARD}.{attempt}.parquet"


def key(term):
    return f"commits/{SHARD}.{term}.json" if term else f"commits/{SHARD}.json"


def sha(content):
    return hashlib.sha256(content).hexdigest()


def put(attempt, content=b"tokens"):
    return Event("PUT", path(attempt), 200, sha256=sha(content))


def delete(attempt):
    return Event("DELETE", path(attempt), 204)


def record(attempt, term=0):
    item = {"path": path(attempt), "sha256": sha(b"tokens")}
    return json.dumps({"attempt": attempt, "term": term, "objects": [item]}).encode()


def put_record(content, term=0, status=200, *, conditional=True):
    return Event("PUT", key(term), status, conditional, sha(content), content)


def commit(attempt, term=0, status=200, **more):
    return put_record(record(attempt, term), term, status, **more)


def fence(term=0, **more):
    return put_record(FENCE, term, **more)


def final(*attempts, **records):
    return {path(one): b"tokens" for one in attempts} | {
        key(int(term[1:])): content for term, content in records.items()
    }


SOUND = [
    put(X), put(Y), commit(X), commit(Y, status=412), delete(Y),  # a race
    Event("GET", path(X), 200), Event("GET", path(Y), 404),
    fence(conditional=False), put(Z), commit(Z, 1), delete(X), fence(conditional=False),  # taken back, and redone
]  # fmt: skip
SOUND_FINAL = final(Z, t0=FENCE, t1=record(Z, 1))


def test_a_sound_history():
    verdict = judge(SOUND, SOUND_FINAL)
    assert verdict.violations == []
    assert verdict.counts == {
        "commits": 2, "commits that were not acknowledged": 0, "commits taken back": 1, "objects deleted": 2,
        "reads of objects": 2,
    }  # fmt: skip


def test_gc_of_an_attempt_that_never_tried_and_of_one_that_did():
    events = [put(X), fence(), delete(X), put(Y), fence(1), delete(Y), commit(Y, 1, status=412)]
    assert judge(events, final(t0=FENCE, t1=FENCE)).violations == []


def test_a_sleeper_that_puts_after_its_fence_deletes_its_own():
    events = [fence(), put(X), commit(X, 0, status=412), delete(X)]
    assert judge(events, final(t0=FENCE)).violations == []


VIOLATIONS = {
    "created twice": ([put(X), put(Y), commit(X), commit(Y)], final(X, Y, t0=record(Y))),
    "put over whatever": ([put(X), commit(X, conditional=False)], final(X, t0=record(X))),
    "fence without put-if-absent": ([fence(conditional=False)], final(t0=FENCE)),
    "record was deleted": ([put(X), commit(X), Event("DELETE", key(0), 204)], final(X, t0=record(X))),
    "was not there": ([commit(X, status=412)], final()),
    "before tokens/": ([commit(X), put(X)], final(X, t0=record(X))),
    "as the record says": ([put(X, b"half"), commit(X)], {**final(t0=record(X)), path(X): b"half"}),
    "says term 1": ([put(X), put_record(record(X, 1))], final(X, t0=record(X, 1))),
    "not every term before": ([put(X), commit(X, 1)], final(X, t1=record(X, 1))),
    "was overwritten": ([put(X), commit(X), put(X, b"other")], {**final(t0=record(X)), path(X): b"other"}),
    "deleted while a commit named it": ([put(X), commit(X), delete(X)], final(t0=record(X))),
    "could still commit": ([put(X), delete(X)], final()),
    "while its attempt could still commit": ([fence(), put(X), delete(X), fence(1)], final(t0=FENCE, t1=FENCE)),
    "reader missed": ([put(X), commit(X), Event("GET", path(X), 404)], final(X, t0=record(X))),
    "was lost": ([put(X), commit(X)], final(X)),
    "from nowhere": ([], final(X)),
    "not what was written last": ([put(X)], {path(X): b"other"}),
}


@pytest.mark.parametrize("words", VIOLATIONS)
def test_a_violation_is_found(words):
    events, objects = VIOLATIONS[words]
    (violation,) = judge(events, objects).violations
    assert words in violation


def test_events_are_in_the_store_s_order_and_only_what_it_did():
    def exchange(number, order, key, **more):
        return Exchange(number, "PUT", "bucket", key, {}, more.pop("headers", {}), "sha", 3, 0.0, **more)

    log = [
        exchange(0, 7, "out/tokens/x", store_status=200, store_order=7, client_status=None),
        exchange(1, None, "out/tokens/y", client_status=503),
        exchange(2, 6, "out/commits/x", headers={"if-none-match": "*"}, store_status=412, store_order=6),
        exchange(3, 8, "in/x", store_status=200, store_order=8),
    ]
    assert events_of(log, {2: b"{}"}, "out/") == [
        Event("PUT", "commits/x", 412, True, "sha", b"{}", acknowledged=False),
        Event("PUT", "tokens/x", 200, False, "sha", b"", acknowledged=False),
    ]
