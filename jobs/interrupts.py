"""Ctrl-C and SIGTERM: the first asks the run to drain, the second stops it now."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupts:
    """Counts signals while its context is open; outside of `draining()` each one raises `KeyboardInterrupt`."""

    def __init__(self) -> None:
        self.count = 0
        self._drains = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self  # a library's caller in another thread keeps its own handling: Python allows no other here
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def drains(self, yes: bool) -> None:
        """From now on the first signal only counts, because somebody looks at `count`."""
        self._drains = yes

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1 or not self._drains:
            raise KeyboardInterrupt
