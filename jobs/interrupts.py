"""Ctrl-C and SIGTERM: the first asks the run to drain, the second stops it now."""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, ClassVar, Self


class Interrupts:
    """Counts signals while its context is open; unless `drains`, each one raises `KeyboardInterrupt`."""

    any_raised: ClassVar[bool] = False
    """In this process: objects that were half made then may complain when they are deleted."""

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
            Interrupts.any_raised = True
            raise KeyboardInterrupt


_SIGACTION_BYTES_MAX = 512
"""Of the C library's `struct sigaction`, of which only the handler matters here: 152 in glibc on x86-64."""

_HANDLER_BYTES = ctypes.sizeof(ctypes.c_void_p)
"""The handler stands first."""

_KEEP_EVERY_S = 0.001


class _Actions:
    """What the C library does on SIGTERM and SIGALRM, as it was."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None)
        self._sigterm, self._sigalrm = (self._action(number) for number in (signal.SIGTERM, signal.SIGALRM))

    def put_back(self) -> None:
        """Undo what was changed, but for alarms that were set under the handler of before."""
        self._libc.sigaction(int(signal.SIGTERM), self._sigterm, None)
        if self._action(signal.SIGALRM).raw[:_HANDLER_BYTES] != self._sigalrm.raw[:_HANDLER_BYTES]:
            # Ray's C++ answer to a SIGTERM: a stack trace, our own handler, and an alarm that aborts in 3 s.
            signal.alarm(0)
            self._libc.sigaction(int(signal.SIGALRM), self._sigalrm, None)

    def _action(self, number: signal.Signals) -> ctypes.Array[ctypes.c_char]:
        action = ctypes.create_string_buffer(_SIGACTION_BYTES_MAX)
        self._libc.sigaction(int(number), None, action)
        return action


_ONE_KEEPER = threading.Lock()
"""Two at once would each put back what the other found."""


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """Keep SIGTERM's handler while a library is used that takes it, as Ray does while it starts and while it ends.

    What it sets by Python in this thread is not set. What it sets by the C library, where Python could answer only
    once the main thread is out of it, a thread puts back, every millisecond and once more at the end.
    """
    with _ONE_KEEPER:
        actions, over, set_handler, ours = _Actions(), threading.Event(), signal.signal, threading.get_ident()

        def keep() -> None:
            while not over.wait(_KEEP_EVERY_S):
                actions.put_back()

        def set_other(number: int, handler: Any) -> Any:
            is_kept = number == signal.SIGTERM and threading.get_ident() == ours
            return signal.getsignal(number) if is_kept else set_handler(number, handler)

        keeper = threading.Thread(target=keep, name="voxmill-sigterm", daemon=True)
        try:
            keeper.start()
            signal.signal = set_other  # type: ignore[assignment]
            yield
        finally:  # an interrupt may come between any two of these lines
            over.set()
            signal.signal = set_handler
            try:
                if keeper.ident is not None:
                    keeper.join()
            finally:
                actions.put_back()
