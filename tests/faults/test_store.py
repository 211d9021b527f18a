"""A store and a network that fail for a while: the same calls are made again, within their bounds."""

from __future__ import annotations

import json
import math

import pytest

from tests.faults.exchanges import Delay, FlipReply, FlipRequest, HalfBody, LoseReply, Refuse, Reset, Stall
from tests.faults.matrix import row
from tests.faults.rules import Outage, any_of, first, is_put, is_shard, share, tries
from tests.faults.test_store_commits import check_deleted_on_proof


def folders(log):
    """The folders that exchanges were about."""
    return {exchange.key.rpartition("/")[0] for exchange in log}


@row("store", "connection reset", "the first two tries of every request, before the store sees them", heavy=True)
def test_reset(s3_ground, proxy):
    s3_ground.put_clean()
    proxy.rule = first(2, Reset())
    s3_ground.check(s3_ground.run())
    for exchanges in tries(proxy.log).values():
        assert [exchange.fault for exchange in exchanges[:3]] == ["Reset", "Reset", None]
    assert folders(proxy.faults()) >= {"in", "out", "out/tokens", "out/commits"}
    s3_ground.note(f"{len(proxy.faults())} requests")


@row("store", "half a body", "the first answer to every GET ends in its middle")
def test_half_body(s3_ground, proxy):
    s3_ground.put_clean()
    proxy.rule = first(1, HalfBody(), lambda request: request.method == "GET")
    s3_ground.check(s3_ground.run())
    asked = [exchanges for exchanges in tries(proxy.log).values() if exchanges[0].method == "GET"]
    assert all([exchange.fault for exchange in exchanges[:2]] == ["HalfBody", None] for exchanges in asked)
    assert folders(proxy.faults()) >= {"", "in", "out", "out/commits"}
    s3_ground.note(f"{len(proxy.faults())} requests")


@row(
    "store",
    "stalled socket",
    "each shard's read stops in its middle; puts of objects and commits get no answer",
    heavy=True,
)
def test_stalled(s3_ground, proxy):
    s3_ground.put_clean()
    proxy.rule = any_of(
        first(1, Stall(half_body=True), is_shard),
        first(1, Stall(), is_put("tokens")),
        first(1, Stall(after_store=True), is_put("commits")),
    )
    s3_ground.check(s3_ground.run("--set=storage.read_timeout_s=0.5"))
    assert len(proxy.faults()) == 9
    assert all(exchange.ended_s - exchange.started_s < 5 for exchange in proxy.faults())
    s3_ground.note("9 requests")


@row("store", "30% of requests refused", "500, 503 or 429 by a seed, in place of the store's answer")
def test_refused(s3_ground, proxy):
    s3_ground.put_clean(5)
    proxy.rule = share(30, [Refuse(500, "InternalError"), Refuse(503, "SlowDown"), Refuse(429, "TooManyRequests")])
    s3_ground.check(s3_ground.run("--set=retry.attempts_max=12"))
    refused, num = proxy.faults(), len(proxy.log)
    assert {exchange.client_status for exchange in refused} == {500, 503, 429}
    # Attempts have random names, so which requests are refused is drawn anew: within four standard deviations.
    assert num > 60
    assert abs(len(refused) - 0.3 * num) < 4 * math.sqrt(0.3 * 0.7 * num)
    s3_ground.note(f"{len(refused)} requests")


@row("store", "a bit flipped on the way in", "in the first answer to every read of a shard or record")
def test_flipped_reads(s3_ground, proxy):
    s3_ground.put_clean()
    proxy.rule = first(1, FlipReply(), is_shard)
    objects = s3_ground.check(s3_ground.run())
    damaged = [json.loads(content) for path, content in objects.items() if path.startswith("failures/")]
    assert [(failure["kind"], "was damaged on its way" in failure["message"]) for failure in damaged] == 3 * [
        ("infra", True)
    ]
    s3_ground.place.put("out/manifest.parquet", b"derived, and damaged: the commits are read instead")
    num_before = len(proxy.log)
    proxy.rule = first(1, FlipReply(), lambda request: request.method == "GET" and not request.is_listing)
    s3_ground.check(s3_ground.run())
    reads = [exchanges for exchanges in tries(proxy.log[num_before:]).values() if exchanges[0].fault]
    assert len(reads) == 5, "the job, the manifest and three commits"
    assert all([exchange.fault for exchange in exchanges[:2]] == ["FlipReply", None] for exchanges in reads)


@row(
    "store",
    "a bit flipped on the way out",
    "in the first try of every put; of a commit's, where the store sees it and where not",
)
def test_flipped_writes(s3_ground, proxy):
    s3_ground.put_clean()
    proxy.rule = any_of(
        # What stores answer that compare a body with its SHA-256; moto does not, and takes the next try as it comes.
        first(1, Refuse(400, "XAmzContentSHA256Mismatch"), is_put("commits")),
        first(2, FlipRequest(), is_put("commits")),
        first(1, FlipRequest(), lambda request: request.method == "PUT" and "/.probe-" not in request.key),
    )
    s3_ground.check(s3_ground.run())
    for exchanges in tries(one for one in proxy.log if one.fault).values():
        faults = ["Refuse", "FlipRequest"] if is_put("commits")(exchanges[0]) else ["FlipRequest"]
        assert [exchange.fault for exchange in exchanges] == faults
    commit_puts = tries(one for one in proxy.log if is_put("commits")(one))
    assert len(commit_puts) == 3
    for refused, damaged, mended in commit_puts.values():
        assert (refused.headers["if-none-match"], damaged.headers["if-none-match"]) == ("*", "*")
        assert mended.headers["if-match"] == f'"{damaged.etag}"'
    assert folders(proxy.faults()) >= {"out", "out/tokens", "out/commits"}
    s3_ground.note(f"{len(proxy.faults())} requests")


@row("store", "an outage", "from the first put of an object on 40 requests are answered 503", heavy=True)
def test_outage(s3_ground, proxy):
    s3_ground.put_clean(5)
    outage = Outage(after=is_put("tokens"), num=40)
    proxy.rule = outage
    s3_ground.check(s3_ground.run("--set=retry.attempts_max=3"))
    assert len(proxy.faults()) == 40
    s3_ground.note("40 requests")


@row("store", "a slow store", "every answer comes a tenth of a second late", heavy=True)
def test_slow(s3_ground, proxy):
    s3_ground.put_clean()
    proxy.rule = lambda request: Delay(0.1)
    s3_ground.check(s3_ground.run())
    assert len(proxy.faults()) == len(proxy.log), "no request was made twice for it"
    assert max(map(len, tries(proxy.log).values())) <= 2


@row(
    "store",
    "all at once, on Ray",
    "20% of requests refused, reset, cut in half or their reply lost; two replicas",
    heavy=True,
)
@pytest.mark.timeout(200)
def test_many_on_ray(s3_ground, proxy):
    s3_ground.put_clean(10)
    proxy.rule = share(20, [Refuse(500, "InternalError"), Refuse(), Reset(), HalfBody(), LoseReply()])
    ended = s3_ground.run("--executor=ray", "--replicas=2", "--set=retry.attempts_max=12", limit_s=150)
    objects = s3_ground.check(ended)
    check_deleted_on_proof(proxy.log, objects)
    assert {exchange.fault for exchange in proxy.faults()} == {"Refuse", "Reset", "HalfBody", "LoseReply"}
    assert 0.1 < len(proxy.faults()) / len(proxy.log) < 0.3
    s3_ground.note(f"{len(proxy.faults())} requests")
