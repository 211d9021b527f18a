"""How the store and the network are: seeded, and another way every few seconds."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from tests.faults.exchanges import Fault, HalfBody, LoseReply, Refuse, Request, Reset, Stall

FAULTS: Mapping[str, Callable[[], Fault]] = {
    "500": lambda: Refuse(500, "InternalError"),
    "503": lambda: Refuse(503, "SlowDown"),
    "429": lambda: Refuse(429, "TooManyRequests"),
    "reset": Reset,
    "lost reply": LoseReply,
    "half a body": HalfBody,
    "stall": Stall,
    "stall after": lambda: Stall(after_store=True),
}

PHASES: Mapping[str, tuple[float, tuple[str, ...]]] = {
    "calm": (0.0, ("500",)),
    "overloaded": (0.3, ("500", "503", "429")),
    "broken lines": (0.15, ("reset", "half a body")),
    "lost replies": (0.25, ("lost reply",)),
    "stalls": (0.04, ("stall", "stall after")),
    "outage": (0.9, ("503",)),
    "everything": (0.2, tuple(FAULTS)),
}
"""The share of requests that get one of these faults."""


class Weather:
    """The proxy's rule; it also keeps the bodies of all records that were put, by exchange."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._share, self._faults = PHASES["calm"]
        self.records: dict[int, bytes] = {}
        self.num_faults = 0

    def turn(self, phase: str) -> None:
        """Another phase."""
        self._share, self._faults = PHASES[phase]

    def __call__(self, request: Request) -> Fault | None:
        if request.method == "PUT" and request.key.startswith("out/commits/"):
            self.records[request.number] = request.body
        if self._rng.random() >= self._share:
            return None
        self.num_faults += 1
        return FAULTS[self._rng.choice(self._faults)]()
