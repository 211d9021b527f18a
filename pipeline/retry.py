"""The one policy for a call to a store that may fail for a while."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.config import RetryConfig
from pipeline.errors import StoreUnavailableError

T = TypeVar("T")


class Retry:
    """Tries again on `StoreUnavailableError` alone, within `attempts_max` tries and `total_s_max` seconds.

    The wait before try n + 1 is drawn evenly from [0, min(backoff_s_max, backoff_s * 2^(n-1))] ("full
    jitter": https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), so that a thousand
    replicas turned away at once do not come back at once. Safe from several threads.
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
                wait_s = self._wait_s(tries)
                spent_s = self._clock() - start_s
                if tries >= self._config.attempts_max or spent_s + wait_s > self._config.total_s_max:
                    # The error keeps its class and its traceback; only its words change.
                    error.args = (f"{error}; gave up after {_times(tries)} in {spent_s:.1f} s",)
                    raise
                self._sleep(wait_s)

    def _wait_s(self, tries: int) -> float:
        bound_s = min(self._config.backoff_s_max, self._config.backoff_s * 2.0 ** (tries - 1))
        return self._rng.uniform(0.0, bound_s)


def _times(tries: int) -> str:
    return "1 try" if tries == 1 else f"{tries} tries"
