"""Objects that come, go and change while a run looks at them."""

from __future__ import annotations

import json

import pytest

from tests.corpus import speech_shards
from tests.faults.exchanges import Refuse
from tests.faults.ground import Ground, Place, command
from tests.faults.matrix import row
from tests.faults.proxy import FaultProxy
from tests.faults.rules import any_of, first, is_put, is_shard, tries
from tests.servers import make_bucket, moto_server

IN_RANGES = "--set=reading.range_bytes=65536"
OTHERS = speech_shards(5)
OTHER_NAMES = sorted(OTHERS)


def amid(name, happens):
    """Let something happen once, when the second range of a shard is asked for."""
    done = []

    def rule(request):
        if is_shard(request) and request.key.endswith(name) and "65536-" in request.headers["range"] and not done:
            done.append(request.number)
            happens()

    return rule, done


@row("store", "object overwritten mid-read", "another shard put over it between two of its ranges")
def test_overwritten(s3_ground, proxy):
    s3_ground.put_clean()
    proxy.rule, done = amid("speech-001.tar", lambda: s3_ground.put({"speech-001.tar": OTHERS["speech-001.tar"]}))
    ended = s3_ground.run(IN_RANGES)
    s3_ground.check(ended, exit_code=1, failed={"speech-001.tar": "ObjectChangedError"})
    assert done
    assert 412 in {one.store_status for one in proxy.log if is_shard(one)}
    s3_ground.check(s3_ground.run(IN_RANGES))


@row("store", "object deleted mid-read", "a shard deleted between two of its ranges; later it is put back", heavy=True)
def test_deleted(s3_ground, proxy):
    shards = s3_ground.put_clean()
    proxy.rule, done = amid("speech-001.tar", lambda: s3_ground.place.delete("in/speech-001.tar"))
    ended = s3_ground.run(IN_RANGES)
    s3_ground.check(ended, exit_code=1, failed={"speech-001.tar": "ObjectMissingError"})
    assert done
    ended = s3_ground.run(IN_RANGES)
    assert (ended.exit_code, len(ended.report["missing"])) == (1, 1)
    assert "in/speech-001.tar" in ended.report["missing"][0]
    s3_ground.put({"speech-001.tar": shards["speech-001.tar"]})
    s3_ground.check(s3_ground.run(IN_RANGES, "--retry-failed"))


@row("store", "eventual 404", "of a shard just listed, of an object just put, of a commit that is said to exist")
def test_eventual(s3_ground, proxy):
    s3_ground.put_clean()
    put: set[str] = set()

    def is_just_put(request):
        if request.method == "PUT":
            put.add(request.key)
        return request.method == "HEAD" and request.key in put

    def is_read_back(request):
        return request.method == "GET" and request.key in put

    missing = Refuse(404, "NoSuchKey")
    proxy.rule = any_of(
        first(1, missing, is_shard),
        first(1, missing, is_just_put),
        first(1, Refuse(412, "PreconditionFailed"), is_put("commits")),
        first(1, missing, is_read_back),
    )
    objects = s3_ground.check(s3_ground.run())
    failures = [json.loads(content) for path, content in objects.items() if path.startswith("failures/")]
    assert sorted(one["error"] for one in failures) == 3 * ["ObjectMissingError"] + 3 * ["StoreUnavailableError"]
    heads = [one for one in tries(proxy.log).values() if one[0].method == "HEAD" and one[0].fault]
    assert len(heads) >= 6
    assert all(exchanges[1].client_status == 200 for exchanges in heads)


@pytest.fixture
def paged_ground(faults_lab, monkeypatch):
    """A ground on a store that lists two names a page."""
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "2")
    with moto_server() as server:
        make_bucket(server, "paged")
        yield Ground(faults_lab, Place("s3://paged", server), server.environment())


@row(
    "store",
    "a listing that grows",
    "two names a page; shards put before and behind the next page, found now or later",
    heavy=True,
)
def test_growing_listing(paged_ground):
    early, first_three, late = OTHER_NAMES[:1], OTHER_NAMES[1:4], OTHER_NAMES[4:]
    paged_ground.put({name: OTHERS[name] for name in first_three})

    def rule(request):
        if request.is_listing and request.query.get("prefix") == "in/" and "continuation-token" in request.query:
            for name in early + late:
                paged_ground.place.put(f"in/{name}", OTHERS[name])

    run = command(paged_ground.place, [""], "--executor=inline")
    with FaultProxy(paged_ground.place.server, rule) as proxy:
        environment = paged_ground.environment | {"AWS_ENDPOINT_URL": proxy.endpoint}
        ended = paged_ground.lab.start(run, environment).wait()
        paged_ground.shards |= {name: OTHERS[name] for name in late}
        paged_ground.check(ended)
        assert ended.report["num_committed_now"] == 4
        pages = [one for one in proxy.log if one.query.get("prefix") == "in/"]
        assert len(pages) == 2
        ended = paged_ground.lab.start(run, environment).wait()
    paged_ground.shards |= {name: OTHERS[name] for name in early}
    paged_ground.check(ended)
    assert ended.report["num_committed_now"] == 1
