"""A proxy in front of an S3 server that injects faults by rule and keeps the history of every exchange.

    def rule(request):
        return LoseReply() if request.method == "PUT" and request.key.startswith("out/commits/") else None

    with FaultProxy(moto_server, rule) as proxy:
        ground.run(AWS_ENDPOINT_URL=proxy.endpoint)
    assert [exchange.fault for exchange in proxy.log if exchange.fault] == ["LoseReply"]

Requests go on as they came, the Host header among them, so that a store that checks signatures still takes them.
"""

from __future__ import annotations

import hashlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.faults.exchanges import (
    Delay,
    Exchange,
    Fault,
    FlipReply,
    FlipRequest,
    HalfBody,
    LoseReply,
    Refuse,
    Request,
    Reset,
    Stall,
)
from tests.servers import S3Server

ORDER_HEADER = "x-store-order"
"""See `tests/moto.py`, which is not imported here: it takes two seconds."""

_LIMIT_S = 60.0
_POLL_S = 0.02
_OF_A_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}
_SECRET = {"authorization", "x-amz-security-token"}


Rule = Callable[[Request], Fault | None]


class FaultProxy:
    """A proxy on 127.0.0.1; `rule` may be replaced while it runs, and is called by one thread at a time."""

    def __init__(self, upstream: S3Server, rule: Rule = lambda request: None) -> None:
        self.upstream = upstream
        self.rule = rule
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._rule_lock = threading.Lock()
        self._exchanges: list[Exchange] = []
        self._connections: set[socket.socket] = set()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": _POLL_S})

    @property
    def endpoint(self) -> str:
        """The URL that clients are to be pointed at."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def log(self) -> list[Exchange]:
        """All exchanges so far by the order of their requests, those under way among them."""
        with self._lock:
            return list(self._exchanges)

    def faults(self) -> list[Exchange]:
        """The exchanges that were tampered with."""
        return [exchange for exchange in self.log if exchange.fault is not None]

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._thread.join()
        with self._lock:
            for connection in self._connections:
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()

    def begin(self, request: Request) -> tuple[Request, Fault | None]:
        """Number a request, write it down, and ask the rule."""
        shown = {name: value for name, value in request.headers.items() if name not in _SECRET}
        with self._rule_lock:
            with self._lock:
                request = replace(request, number=len(self._exchanges))
                exchange = Exchange(
                    number=request.number,
                    method=request.method,
                    bucket=request.bucket,
                    key=request.key,
                    query=request.query,
                    headers=shown,
                    body_sha256=hashlib.sha256(request.body).hexdigest(),
                    body_bytes=len(request.body),
                    started_s=time.monotonic(),
                )
                self._exchanges.append(exchange)
            fault = self.rule(request)
        if fault is not None:
            self.note(request.number, fault=type(fault).__name__)
        return request, fault

    def note(self, number: int, **facts: str | int | float | None) -> None:
        """Write down what else is known of an exchange."""
        with self._lock:
            self._exchanges[number] = replace(self._exchanges[number], **facts)  # type: ignore[arg-type]

    def opened(self, connection: socket.socket) -> None:
        """A client is there."""
        with self._lock:
            self._connections.add(connection)

    def closed(self, connection: socket.socket) -> None:
        """A client is gone."""
        with self._lock:
            self._connections.discard(connection)


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = False  # so that closing waits for them

    def __init__(self, proxy: FaultProxy) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proxy = proxy


@dataclass(frozen=True)
class _Reply:
    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""


class _Handler(BaseHTTPRequestHandler):
    """One client's connection, and one of its own to the store."""

    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = _LIMIT_S

    def setup(self) -> None:
        super().setup()
        self.proxy = self.server.proxy
        self.proxy.opened(self.connection)
        host, port = self.proxy.upstream.endpoint.removeprefix("http://").split(":")
        self.upstream = HTTPConnection(host, int(port), timeout=_LIMIT_S)

    def finish(self) -> None:
        self.upstream.close()
        self.proxy.closed(self.connection)
        super().finish()

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client left, maybe since it stopped waiting
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        """The log is `FaultProxy.log`."""

    def do_any(self) -> None:
        request, fault = self.proxy.begin(self._request())
        try:
            self._exchange(request, fault)
        finally:
            self.proxy.note(request.number, ended_s=time.monotonic())

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_any  # noqa: N815 - names set by http.server

    def _exchange(self, request: Request, fault: Fault | None) -> None:
        match fault:
            case Refuse():
                self._answer(request, _refusal(request, fault))
            case Reset():
                self._reset()
            case Stall(after_store=False, half_body=False):
                if self._stall(fault):
                    self._answer(request, self._ask(request))
            case FlipRequest():
                self._answer(request, self._ask(replace(request, body=_flipped(request.body, fault.at))))
            case Delay():
                self.proxy.stopped.wait(fault.delay_s)
                self._answer(request, self._ask(request))
            case None:
                self._answer(request, self._ask(request))
            case _:
                self._spoil(request, self._ask(request), fault)

    def _spoil(self, request: Request, reply: _Reply, fault: Fault) -> None:
        """The faults that come after the store has answered."""
        match fault:
            case LoseReply():
                self._reset()
            case HalfBody():
                self._answer(request, reply, half=True)
                self.close_connection = True
            case FlipReply():
                self._answer(request, replace(reply, body=_flipped(reply.body, fault.at)))
            case Stall():
                sent = self._answer(request, reply, half=True) if fault.half_body else 0
                if self._stall(fault):
                    self._answer(request, reply, skip_bytes=sent)
            case _:
                raise TypeError(f"{fault!r} is no fault that the proxy knows")

    def _request(self) -> Request:
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).removeprefix("/").partition("/")
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        return Request(-1, self.command, bucket, key, query, headers, self._body(headers))

    def _body(self, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return self._read(int(headers.get("content-length", "0")))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self._read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(chunks)

    def _read(self, num_bytes: int) -> bytes:
        data = self.rfile.read(num_bytes)
        if len(data) < num_bytes:
            raise ConnectionResetError("the client left amid its request")
        return data

    def _ask(self, request: Request) -> _Reply:
        """The store's answer, whole."""
        idle = self.upstream.sock
        if idle is not None and select.select([idle], [], [], 0)[0]:
            self.upstream.close()  # the store has closed it meanwhile; the next request opens another
        self.upstream.putrequest(request.method, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _OF_A_HOP:
                self.upstream.putheader(name, value)
        self.upstream.putheader("Content-Length", str(len(request.body)))
        self.upstream.endheaders(request.body)
        answer = self.upstream.getresponse()
        body = answer.read()
        etag = answer.getheader("ETag")
        order = answer.getheader(ORDER_HEADER)
        self.proxy.note(
            request.number,
            store_status=answer.status,
            store_order=int(order) if order else None,
            etag=etag.strip('"') if etag else None,
        )
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _OF_A_HOP]
        length = answer.getheader("Content-Length") if request.method == "HEAD" else str(len(body))
        if length is not None and answer.status != 204:
            headers.append(("Content-Length", length))
        return _Reply(answer.status, headers, body)

    def _answer(self, request: Request, reply: _Reply, *, half: bool = False, skip_bytes: int = 0) -> int:
        """Send an answer, or the first half of its bytes, or what was left of it; returns the bytes of it sent."""
        lines = [f"HTTP/1.1 {reply.status} {self.responses.get(reply.status, ('',))[0]}"]
        lines += [f"{name}: {value}" for name, value in reply.headers]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        end = len(head) + (len(reply.body) // 2 if half else len(reply.body))
        # Before the last byte, so that whoever has the answer finds it in the log.
        self.proxy.note(request.number, client_status=reply.status)
        try:
            self.connection.sendall((head + reply.body)[skip_bytes:end])
        except OSError:
            self.proxy.note(request.number, client_status=None)
            raise
        return end

    def _stall(self, fault: Stall) -> bool:
        """Wait; whether it was released, and the client still there."""
        while not fault.released.wait(_POLL_S):
            left = select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1, socket.MSG_PEEK)
            if left or self.proxy.stopped.is_set():
                self.close_connection = True
                return False
        return True

    def _reset(self) -> None:
        # Linger of zero seconds: closing sends RST instead of FIN.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.proxy.closed(self.connection)
        os.close(self.connection.detach())
        self.close_connection = True


def _refusal(request: Request, fault: Refuse) -> _Reply:
    body = b""
    if request.method != "HEAD":
        body = (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{fault.code}</Code><Message>injected</Message>'
            f"<RequestId>{request.number}</RequestId></Error>"
        ).encode()
    return _Reply(fault.status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))], body)


def _flipped(body: bytes, at: float) -> bytes:
    position = min(int(len(body) * at), len(body) - 1)
    return body[:position] + bytes([body[position] ^ 1]) + body[position + 1 :] if body else body
