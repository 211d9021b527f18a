"""What a run does while the store denies it access: it asks more and more rarely, and for so long only."""

from __future__ import annotations

import random

from pipeline.retry import jittered_wait_s
from pipeline.settings import RunningConfig


class Denials:
    """Attempts in a row that ended because the store denied access; no I/O, no clock: time is passed in.

    Credentials that a role or a profile renews may come back by themselves. Until then every shard would be denied
    within milliseconds, one after another, until none of a million had a try left.
    """

    def __init__(self, config: RunningConfig, rng: random.Random) -> None:
        self._config = config
        self._rng = rng
        self._num = 0
        self.last = ""
        self._since_s = self._last_s = self._until_s = 0.0

    def note(self, now_s: float, message: str) -> None:
        """Another attempt was denied."""
        self._num += 1
        self.last = message
        if self._num == 1:
            self._since_s = now_s
        self._last_s = now_s
        self._until_s = now_s + jittered_wait_s(
            self._num,
            backoff_s=self._config.retry_backoff_s,
            backoff_s_max=self._config.retry_backoff_s_max,
            rng=self._rng,
        )

    def clear(self) -> None:
        """An attempt ended otherwise."""
        self._num = 0

    def hold(self, now_s: float) -> bool:
        """Whether no shard is to be handed out now."""
        return self._num > 0 and now_s < self._until_s

    @property
    def lasted(self) -> bool:
        """Whether they have lasted so long that the run is to stop."""
        return self._num > 0 and self._last_s - self._since_s > self._config.denied_s_max
