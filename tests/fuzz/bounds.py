"""What no input may do: take long, take much at once, or make the code reach out of the process."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

CPU_S_MAX = 10.0
"""Of one input: all are small, so what takes this long grows faster than they do."""

EVENTS_REFUSED = frozenset(
    {
        "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.putenv", "os.remove", "os.rename",
        "os.mkdir", "subprocess.Popen", "socket.connect", "socket.bind", "pickle.find_class", "ctypes.dlopen",
    }
)  # fmt: skip
"""Audit events (PEP 578) of code that was run, or of a reach outside."""


class _Watch:
    """An audit hook cannot be taken back, so there is one, which looks only while an input is tried."""

    def __init__(self) -> None:
        self.is_on = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, _arguments: tuple[Any, ...]) -> None:
        if self.is_on and event in EVENTS_REFUSED:
            raise AssertionError(f"an input led to {event}")


_WATCH = _Watch()


def _too_long(_number: int, _frame: FrameType | None) -> None:
    raise AssertionError(f"one input took more than {CPU_S_MAX} s of CPU time")


@contextmanager
def bounded() -> Iterator[None]:
    """Within it CPU time is bounded, and no process, connection or file of another's is touched."""
    before = signal.signal(signal.SIGVTALRM, _too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S_MAX)
    _WATCH.is_on = True
    try:
        yield
    finally:
        _WATCH.is_on = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
