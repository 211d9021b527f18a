"""What passes through the fault proxy: requests, what became of them, and the faults that a rule may choose."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Request:
    """A request as the client sent it; header names are lower-case, the key is decoded."""

    number: int
    method: str
    bucket: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    @property
    def is_listing(self) -> bool:
        """Whether it asks for a page of names."""
        return self.method == "GET" and not self.key and "list-type" in self.query


@dataclass(frozen=True)
class Exchange:
    """What became of a request. Times are of `time.monotonic`; what has not happened is None.

    `store_status` is None when the store never saw it, `client_status` when the client got no status. `store_order` is
    its place among all that the store did, where that tells; `etag` the store's, without quotes. Headers that prove who
    asks are left out.
    """

    number: int
    method: str
    bucket: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body_sha256: str
    body_bytes: int
    started_s: float
    fault: str | None = None
    store_status: int | None = None
    store_order: int | None = None
    etag: str | None = None
    client_status: int | None = None
    ended_s: float | None = None


@dataclass(frozen=True)
class Fault:
    """What the proxy does to one exchange instead of handing it on."""


@dataclass(frozen=True)
class Refuse(Fault):
    """Answer with a status and S3's XML error; the store sees nothing."""

    status: int = 503
    code: str = "SlowDown"


@dataclass(frozen=True)
class Reset(Fault):
    """End the connection by a TCP reset; the store sees nothing."""


@dataclass(frozen=True)
class LoseReply(Fault):
    """The store does it; the client gets a TCP reset."""


@dataclass(frozen=True)
class HalfBody(Fault):
    """The head of the store's answer and the first half of its body, then the end of the connection."""


@dataclass(frozen=True)
class Stall(Fault):
    """Not one byte until it is released or the client leaves; `after_store` says whether the store did it before.

    With `half_body` the first half of the answer comes before the silence.
    """

    after_store: bool = False
    half_body: bool = False
    released: threading.Event = field(default_factory=threading.Event, compare=False)


@dataclass(frozen=True)
class FlipReply(Fault):
    """One bit of the answer's body is another, at this share of its length."""

    at: float = 0.5


@dataclass(frozen=True)
class FlipRequest(Fault):
    """One bit of the request's body is another when the store gets it."""

    at: float = 0.5


@dataclass(frozen=True)
class Delay(Fault):
    """The request goes on after this time."""

    delay_s: float
