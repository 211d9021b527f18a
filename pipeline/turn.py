"""Whose turn it is on the device: the oldest shard that has a batch ready, so the device never waits for one shard."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turn:
    """A lock that, when let go, goes to the waiter with the lowest ticket."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting: list[int] = []
        self._taken = False
        self._tickets = 0

    def ticket(self) -> int:
        """A ticket, lower than all later ones; one a shard."""
        with self._condition:
            self._tickets += 1
            return self._tickets

    @contextmanager
    def take(self, ticket: int) -> Iterator[None]:
        """Hold the device; a ticket is used by one thread at a time."""
        with self._condition:
            heapq.heappush(self._waiting, ticket)
            self._condition.wait_for(lambda: not self._taken and self._waiting[0] == ticket)
            heapq.heappop(self._waiting)
            self._taken = True
        try:
            yield
        finally:
            with self._condition:
                self._taken = False
                self._condition.notify_all()
