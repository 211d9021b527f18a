"""What a person sees of a run while it goes on, as numbers; drawn by `display.py`."""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field


@dataclass
class RunView:
    """Numbers of a run; of `num_committed`, `num_ours` are this driver's.

    `bytes_*` count input shards; they give the estimate of what is left. `num_frames_by_codebooks` counts all of the
    job's shards that are committed, by whichever driver.
    """

    num_shards: int
    bytes_todo: int
    started_s: float
    num_committed: int = 0
    num_ours: int = 0
    num_done_before: int = 0
    num_failed: int = 0
    num_retries: int = 0
    num_replicas: int = 0
    num_replicas_wanted: int = 0
    num_rows: int = 0
    num_rejected: int = 0
    bytes_done: int = 0
    num_frames_by_codebooks: Counter[int] = field(default_factory=Counter)
    audio_s_committed: float = 0.0
    audio_s_under_way: float = 0.0
    draining: bool = False
    _recent: deque[tuple[float, float]] = field(default_factory=deque)

    @property
    def audio_s(self) -> float:
        """Audio seconds encoded by this run, committed or under way."""
        return self.audio_s_committed + self.audio_s_under_way

    def mark(self, now_s: float, window_s: float = 120.0) -> None:
        """Remember the state for the moving rate."""
        self._recent.append((now_s, self.audio_s))
        while len(self._recent) > 2 and now_s - self._recent[0][0] > window_s:
            self._recent.popleft()

    def times_real_time(self, now_s: float) -> float:
        """Audio seconds per second since the run's first replica worked."""
        elapsed_s = now_s - self.started_s
        return self.audio_s / elapsed_s if elapsed_s > 0 else 0.0

    def recent_rate(self) -> float:
        """Audio seconds per second over the last minutes."""
        if len(self._recent) < 2:
            return 0.0
        (from_s, from_audio), (to_s, to_audio) = self._recent[0], self._recent[-1]
        return max(0.0, (to_audio - from_audio) / (to_s - from_s)) if to_s > from_s else 0.0

    def eta_s(self, now_s: float) -> float:
        """Seconds left, by input bytes done per second; infinite before the first shard is done."""
        elapsed_s = now_s - self.started_s
        if not self.bytes_done or elapsed_s <= 0:
            return math.inf
        return (self.bytes_todo - self.bytes_done) * elapsed_s / self.bytes_done
