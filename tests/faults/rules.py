"""Which exchanges the fault proxy tampers with: by set counts or a seed, never by luck."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from tests.faults.exchanges import Exchange, Fault, Refuse, Request
from tests.faults.proxy import Rule

UNAVAILABLE = Refuse()
Where = Callable[[Request], bool]
Identity = tuple[str, ...]


def identity(request: Request | Exchange) -> Identity:
    """What a try has in common with the next one: what is asked, and of what."""
    query = [f"{name}={value}" for name, value in sorted(request.query.items())]
    return (request.method, request.key, request.headers.get("range", ""), *query)


def tries(log: Iterable[Exchange]) -> dict[Identity, list[Exchange]]:
    """The exchanges of each request, in their order."""
    found: defaultdict[Identity, list[Exchange]] = defaultdict(list)
    for exchange in log:
        found[identity(exchange)].append(exchange)
    return found


def first(num: int, fault: Fault, where: Where = lambda request: True) -> Rule:
    """The first tries of each request that matches."""
    seen: Counter[Identity] = Counter()

    def rule(request: Request) -> Fault | None:
        if not where(request):
            return None
        seen[identity(request)] += 1
        return fault if seen[identity(request)] <= num else None

    return rule


def share(percent: int, faults: Sequence[Fault]) -> Rule:
    """So many of a hundred tries, drawn by a hash of the request and its try: the same ones in whatever order."""
    seen: Counter[Identity] = Counter()

    def rule(request: Request) -> Fault | None:
        what = identity(request)
        seen[what] += 1
        drawn = hashlib.sha256(repr((what, seen[what])).encode()).digest()
        return faults[drawn[1] % len(faults)] if drawn[0] * 100 < percent * 256 else None

    return rule


class Outage:
    """From the first request that matches on, so many requests (all, when None) get the fault; then none."""

    def __init__(self, after: Where, num: int | None = None, fault: Fault = UNAVAILABLE) -> None:
        self._after = after
        self._left = num
        self._fault = fault
        self.began = False

    def __call__(self, request: Request) -> Fault | None:
        self.began = self.began or self._after(request)
        if not self.began or self._left == 0:
            return None
        if self._left is not None:
            self._left -= 1
        return self._fault


def any_of(*rules: Rule) -> Rule:
    """The first fault that one of the rules has."""

    def rule(request: Request) -> Fault | None:
        found = [one(request) for one in rules]  # each one counts, whichever wins
        return next((fault for fault in found if fault is not None), None)

    return rule


def is_shard(request: Request | Exchange) -> bool:
    """A ranged read of a shard."""
    return request.method == "GET" and "range" in request.headers


def is_put(folder: str) -> Where:
    """A write below a folder of the output."""
    return lambda request: request.method == "PUT" and request.key.startswith(f"out/{folder}/")
