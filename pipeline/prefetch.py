"""Run an iterator ahead in a thread, behind a bounded queue."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class _End:
    pass


class _Prefetcher(Generic[T]):
    """The thread and its queue: at most `items_max` items wait, one more is being made."""

    def __init__(self, source: Iterator[T], items_max: int, name: str) -> None:
        self._source = source
        self._items: queue.Queue[T | _Raised | _End] = queue.Queue(maxsize=items_max)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while True:
            item = self._items.get()
            if isinstance(item, _End):
                return
            if isinstance(item, _Raised):
                raise item.error
            yield item
            del item  # it may be large, and is not held while the next one is waited for

    def stop(self) -> None:
        """End the thread: its source is closed in the thread that runs it."""
        self._stopped.set()
        while self._thread.is_alive():
            with suppress(queue.Empty):
                self._items.get_nowait()  # makes room, so that a blocked put sees the stop
            self._thread.join(0.05)

    def _run(self) -> None:
        last: _Raised | _End = _End()
        try:
            for item in self._source:
                self._items.put(item)
                del item
                if self._stopped.is_set():
                    break
            close = getattr(self._source, "close", None)
            if close is not None:
                close()
        except BaseException as error:  # carried over to the reading thread, which raises it
            last = _Raised(error)
        self._items.put(last)


@contextmanager
def prefetched(source: Iterator[T], *, items_max: int, name: str) -> Iterator[Iterator[T]]:
    """Iterate over `source` while a thread makes up to `items_max` items ahead.

    An error of the source is raised at the item where it happened; leaving the context stops the thread.
    """
    prefetcher = _Prefetcher(source, items_max, name)
    try:
        yield iter(prefetcher)
    finally:
        prefetcher.stop()
