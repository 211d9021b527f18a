"""The one policy for what may fail for a while: waits with full jitter, bounded tries, bounded time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import StoreUnavailableError
from pipeline.settings import RetryConfig

T = TypeVar("T")

_DOUBLINGS_MAX = 60
"""Past any bound by then; a float would overflow after a thousand."""


def jittered_wait_s(num_failed: int, *, backoff_s: float, backoff_s_max: float, rng: random.Random) -> float:
    """The wait after so many failed tries (1 or more), drawn evenly from [0, min(backoff_s_max, backoff_s * 2^(n-1))].

    "Full jitter" (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/): a thousand replicas
    turned away at once do not come back at once.
    """
    doublings = min(num_failed - 1, _DOUBLINGS_MAX)
    return rng.uniform(0.0, min(backoff_s_max, backoff_s * 2.0**doublings))


class Retry:
    """Tries again on `StoreUnavailableError` alone, within `attempts_max` tries and `total_s_max` seconds.

    For calls to a store; shards are tried again by the ledger, after the same waits. Safe from several threads.
    """

    def __init__(
        self,
        config: RetryConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._sleep = sleep
        self._rng = random.Random() if rng is None else rng  # noqa: S311 - spreads waits, hides nothing

    def call(self, fn: Callable[[], T]) -> T:
        """What `fn` returns.

        Raises the last `StoreUnavailableError`, its message with the number of tries, when the next wait
        would pass a bound; every other error at once and as it is.
        """
        start_s = self._clock()
        tries = 0
        while True:
            tries += 1
            try:
                return fn()
            except StoreUnavailableError as error:
                wait_s = jittered_wait_s(
                    tries,
                    backoff_s=self._config.backoff_s,
                    backoff_s_max=self._config.backoff_s_max,
                    rng=self._rng,
                )
                spent_s = self._clock() - start_s
                if tries >= self._config.attempts_max or spent_s + wait_s > self._config.total_s_max:
                    # The error keeps its class and its traceback; only its words change.
                    error.args = (f"{error}; gave up after {_times(tries)} in {spent_s:.1f} s",)
                    raise
                self._sleep(wait_s)


def _times(tries: int) -> str:
    return "1 try" if tries == 1 else f"{tries} tries"
