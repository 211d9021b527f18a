"""Read-ahead of one object: several ranged reads under way at once, given out in order as one stream."""

from __future__ import annotations

import hashlib
import io
import re
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from pipeline.errors import DataError, StoreUnavailableError
from pipeline.pages import BLOCK_BYTES_MIN, PAGES
from pipeline.settings import ReadingConfig
from pipeline.storage import Store
from pipeline.types import Content, Shard


class RangeStream:
    """A shard's bytes from its first to its last, read ahead by `config.ranges_in_flight` ranged reads.

    Holds at most `(ranges_in_flight + 2) * range_bytes`. Errors of the store pass through unchanged. A context
    manager; for one thread only.
    """

    def __init__(self, store: Store, shard: Shard, config: ReadingConfig) -> None:
        self._store = store
        self._shard = shard
        self._range_bytes = config.range_bytes
        self._ranges_in_flight = config.ranges_in_flight
        self._executor = ThreadPoolExecutor(config.ranges_in_flight, thread_name_prefix="voxmill-range")
        self._pending: deque[Future[Content]] = deque()
        self._next_start = 0
        self._block = memoryview(b"")
        has_md5 = config.check_md5 and re.fullmatch("[0-9a-f]{32}", shard.etag)
        self._md5 = _Md5Thread() if has_md5 else None

    def __enter__(self) -> RangeStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the reads that have not begun and wait for those under way."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        if self._md5:
            self._md5.close()
        self._pending.clear()
        self._block = memoryview(b"")

    def read_exact(self, num_bytes: int) -> bytes:
        """The next `num_bytes` bytes. Raises `EOFError` when the object ends before them."""
        if num_bytes <= len(self._block):
            taken = bytes(self._block[:num_bytes])
            self._block = self._block[num_bytes:]
            return taken
        # BytesIO gives its buffer away without a copy, so a large member is never held twice.
        joined = io.BytesIO()
        while num_bytes:
            num_bytes -= joined.write(self._take(num_bytes))
        return joined.getvalue()

    def read_payload(self, num_bytes: int) -> Content:
        """As `read_exact`, for what may be large: its pages are used again when nobody looks at it any more."""
        if num_bytes < BLOCK_BYTES_MIN:
            return self.read_exact(num_bytes)
        payload = PAGES.take(num_bytes).data
        num_filled = 0
        while num_filled < num_bytes:
            piece = self._take(num_bytes - num_filled)
            payload[num_filled : num_filled + len(piece)] = piece
            num_filled += len(piece)
        return payload.toreadonly()

    def skip(self, num_bytes: int) -> None:
        """Pass over the next `num_bytes` bytes. Raises `EOFError` when the object ends before them."""
        while num_bytes:
            num_bytes -= len(self._take(num_bytes))

    def check(self) -> None:
        """Compare what was given out, which must be all, with the MD5 that the store has of it, if it has one.

        Ranged reads bear no checksum, so a byte that was damaged on its way, or in a cache, would be taken for audio.
        Raises `StoreUnavailableError` where they differ, `DataError` where they do again when all is read once more.
        """
        assert self._next_start == self._shard.size_bytes
        assert not self._pending
        found = self._md5.hexdigest() if self._md5 else self._shard.etag
        if found != self._shard.etag:
            stored = self._store.md5(self._shard.uri, etag=self._shard.etag)
            if stored in (None, found):
                return
            if self._md5_again() == found:
                raise DataError(
                    f"{self._shard.uri}: read twice with the MD5 {found}, but the store says {stored}: the object or a "
                    "cache before it is damaged, or this store's ETags are no MD5s (then set reading.check_md5=false)"
                )
            raise StoreUnavailableError(
                f"{self._shard.uri}: was damaged on its way: MD5 {found}, in the store {stored}"
            )

    def _md5_again(self) -> str:
        again = hashlib.md5(usedforsecurity=False)
        for start in range(0, self._shard.size_bytes, self._range_bytes):
            again.update(self._read_range(start, min(start + self._range_bytes, self._shard.size_bytes)))
        return again.hexdigest()

    def _take(self, num_bytes_max: int) -> memoryview:
        if not self._block:
            # An empty view would keep the used-up block alive while the next one arrives.
            self._block = memoryview(b"")
            self._block = memoryview(self._next_range())
        taken = self._block[:num_bytes_max]
        self._block = self._block[num_bytes_max:]
        return taken

    def _next_range(self) -> Content:
        self._read_ahead()
        if not self._pending:
            raise EOFError
        oldest = self._pending.popleft()
        self._read_ahead()
        data = oldest.result()
        if self._md5:
            self._md5.update(data)
        return data

    def _read_ahead(self) -> None:
        while len(self._pending) < self._ranges_in_flight and self._next_start < self._shard.size_bytes:
            end = min(self._next_start + self._range_bytes, self._shard.size_bytes)
            self._pending.append(self._executor.submit(self._read_range, self._next_start, end))
            self._next_start = end

    def _read_range(self, start: int, end: int) -> Content:
        data = self._store.read_range(self._shard.uri, start, end, etag=self._shard.etag)
        if len(data) != end - start:
            raise StoreUnavailableError(
                f"{self._shard.uri}: a read of bytes {start} to {end} gave {len(data)} bytes instead of "
                f"{end - start}; trying again may help"
            )
        return data


class _Md5Thread:
    """An MD5 taken beside the reader, which is a block ahead at most: hashlib lets go of the interpreter meanwhile."""

    def __init__(self) -> None:
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="voxmill-md5")
        self._last: Future[None] | None = None

    def update(self, data: Content) -> None:
        """Take in the next bytes, after the last ones have been taken in."""
        self._wait()
        self._last = self._executor.submit(self._md5.update, data)

    def hexdigest(self) -> str:
        """Of all bytes so far."""
        self._wait()
        return self._md5.hexdigest()

    def close(self) -> None:
        """End the thread."""
        self._executor.shutdown(wait=True)

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()
