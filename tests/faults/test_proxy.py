"""The fault proxy: each fault is what it says, and the log tells it."""

from __future__ import annotations

import hashlib
import threading
from http.client import HTTPConnection, HTTPException, IncompleteRead

import pytest

from tests.faults.exchanges import (
    Delay,
    FlipReply,
    FlipRequest,
    HalfBody,
    LoseReply,
    Refuse,
    Reset,
    Stall,
)
from tests.faults.proxy import FaultProxy

BODY = bytes(range(256)) * 4096
SCOPE = "Credential=key/20260101/us-east-1/s3/aws4_request"
SIGNED = {"Authorization": f"AWS4-HMAC-SHA256 {SCOPE}, SignedHeaders=host, Signature=0"}
"""moto wants to see a signature, whatever it is."""


@pytest.fixture
def proxy(moto_server, bucket):
    with FaultProxy(moto_server) as opened:
        opened.bucket = bucket.removeprefix("s3://")
        yield opened


def ask(proxy, method="GET", body=None, *, headers=None, fault=None, connection=None):
    """One request for one key under a fault; its status and body."""
    proxy.rule = lambda request: fault
    own = connection or HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=10)
    try:
        own.request(method, f"/{proxy.bucket}/a%20key", body=body, headers=SIGNED | (headers or {}))
        answer = own.getresponse()
        return answer.status, answer.read()
    finally:
        if connection is None:
            own.close()


def test_hands_on_and_keeps_connections(proxy):
    connection = HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=10)
    assert ask(proxy, "PUT", BODY, connection=connection)[0] == 200
    first = connection.sock
    assert ask(proxy, headers={"Range": "bytes=1-4"}, connection=connection) == (206, BODY[1:5])
    assert ask(proxy, "HEAD", connection=connection) == (200, b"")
    assert ask(proxy, "PUT", iter([b"in ", b"chunks"]), connection=connection)[0] == 200
    assert ask(proxy, connection=connection) == (200, b"in chunks")
    assert connection.sock is first, "one connection for all"
    connection.close()
    put = proxy.log[0]
    assert (put.number, put.method, put.bucket, put.key) == (0, "PUT", proxy.bucket, "a key")
    assert (put.body_bytes, put.body_sha256) == (len(BODY), hashlib.sha256(BODY).hexdigest())
    assert (put.store_status, put.client_status, put.fault) == (200, 200, None)
    assert put.etag == hashlib.md5(BODY).hexdigest()
    assert proxy.log[1].headers["range"] == "bytes=1-4"
    assert all("authorization" not in one.headers for one in proxy.log)
    assert all(one.started_s <= one.ended_s for one in proxy.log[:-1])


def test_before_the_store(proxy):
    assert ask(proxy, "PUT", BODY, fault=Refuse(429, "TooManyRequests"))[0] == 429
    status, body = ask(proxy, fault=Refuse())
    assert (status, b"<Code>SlowDown</Code>" in body) == (503, True)
    assert ask(proxy, "HEAD", fault=Refuse(404, "NoSuchKey")) == (404, b"")
    with pytest.raises(ConnectionResetError):
        ask(proxy, "PUT", BODY, fault=Reset())
    assert ask(proxy)[0] == 404, "the store saw none of it"
    assert [one.store_status for one in proxy.faults()] == [None] * 4
    assert [one.client_status for one in proxy.faults()] == [429, 503, 404, None]
    assert [one.fault for one in proxy.log] == ["Refuse", "Refuse", "Refuse", "Reset", None]


def test_behind_the_store(proxy):
    with pytest.raises(ConnectionResetError):
        ask(proxy, "PUT", BODY, fault=LoseReply())
    with pytest.raises(IncompleteRead) as caught:
        ask(proxy, fault=HalfBody())
    assert caught.value.partial == BODY[: len(BODY) // 2]
    assert [one.store_status for one in proxy.log] == [200, 200]
    assert [one.client_status for one in proxy.log] == [None, 200]


def test_flipped(proxy):
    ask(proxy, "PUT", BODY)
    damaged = ask(proxy, fault=FlipReply())[1]
    assert [index for index in range(len(BODY)) if damaged[index] != BODY[index]] == [len(BODY) // 2]
    ask(proxy, "PUT", BODY, fault=FlipRequest(1.0))
    stored = ask(proxy)[1]
    assert [index for index in range(len(BODY)) if stored[index] != BODY[index]] == [len(BODY) - 1]


@pytest.mark.parametrize("fault", [Stall(), Stall(after_store=True), Stall(half_body=True)])
def test_stalled_until_released(proxy, fault):
    ask(proxy, "PUT", BODY)
    asked = threading.Thread(target=lambda: found.append(ask(proxy, fault=fault)))
    found = []
    asked.start()
    asked.join(0.2)
    assert asked.is_alive()
    fault.released.set()
    asked.join(10)
    assert found == [(200, BODY)]


def test_stalled_until_the_client_leaves(proxy):
    connection = HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=0.2)
    with pytest.raises(TimeoutError):
        ask(proxy, "PUT", BODY, fault=Stall(), connection=connection)
    connection.close()
    assert ask(proxy, fault=Delay(0.05))[0] == 404, "the store never saw the put"


def test_leaving_ends_a_stall(moto_server, bucket):
    def stall():
        with pytest.raises((OSError, HTTPException)):
            ask(proxy, fault=Stall())
        left.set()

    left = threading.Event()
    stalled = threading.Thread(target=stall)
    with FaultProxy(moto_server) as proxy:
        proxy.bucket = bucket.removeprefix("s3://")
        stalled.start()
        while not proxy.faults():
            stalled.join(0.01)
    assert left.wait(10)
    stalled.join(10)
