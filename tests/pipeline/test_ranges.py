from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import DataError, ObjectChangedError, StoreUnavailableError
from pipeline.ranges import RangeStream
from pipeline.settings import ReadingConfig
from pipeline.types import ObjectInfo, Shard

RANGE_BYTES = 1 << 16
DATA = bytes(range(251)) * 2000  # 251 is prime to the range, so a range out of place shows
WAIT_S = 30


class FakeStore:
    """An object in memory; each read is announced, and waits at its gate where there is one."""

    def __init__(self, data: bytes = DATA, etag: str = "tag") -> None:
        self.data = data
        self.etag = etag
        self.is_md5 = True
        self.started: queue.Queue[int] = queue.Queue()
        self.gates: dict[int, threading.Event] = {}
        self.error: Exception | None = None

    def read_range(self, uri: str, start: int, end: int, *, etag: str | None) -> bytes:
        assert (uri, etag) == ("s3://bucket/a.tar", self.etag)
        self.started.put(start)
        if start in self.gates:
            assert self.gates[start].wait(WAIT_S)
        if self.error is not None and start > 0:
            raise self.error
        return self.data[start:end]

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        raise NotImplementedError

    def stat(self, uri: str) -> ObjectInfo:
        raise NotImplementedError

    def read(self, uri: str, *, bytes_max: int) -> bytes:
        raise NotImplementedError

    def md5(self, uri: str, *, etag: str) -> str | None:
        assert (uri, etag) == ("s3://bucket/a.tar", self.etag)
        return etag if self.is_md5 else None

    def put(self, uri: str, data: bytes) -> ObjectInfo:
        raise NotImplementedError

    def put_file(self, uri: str, path: Path) -> ObjectInfo:
        raise NotImplementedError

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        raise NotImplementedError

    def delete(self, uri: str) -> None:
        raise NotImplementedError

    def num_started(self) -> int:
        return self.started.qsize()


def stream(store: FakeStore, *, in_flight: int = 3, size_bytes: int | None = None) -> RangeStream:
    size_bytes = len(store.data) if size_bytes is None else size_bytes
    config = ReadingConfig(range_bytes=RANGE_BYTES, ranges_in_flight=in_flight)
    return RangeStream(store, Shard("s3://bucket/a.tar", size_bytes, store.etag), config)


@pytest.mark.parametrize("step", [1000, 512, RANGE_BYTES, RANGE_BYTES + 1, 3 * RANGE_BYTES + 7, len(DATA)])
def test_gives_every_byte_once_and_in_order(step: int) -> None:
    store = FakeStore()
    with stream(store) as bytes_in:
        pieces = [bytes_in.read_exact(min(step, len(DATA) - at)) for at in range(0, len(DATA), step)]
    assert b"".join(pieces) == DATA
    starts = sorted(store.started.get_nowait() for _ in range(store.num_started()))
    assert starts == list(range(0, len(DATA), RANGE_BYTES))


def test_skips_exactly() -> None:
    with stream(FakeStore()) as bytes_in:
        bytes_in.skip(10)
        assert bytes_in.read_exact(5) == DATA[10:15]
        bytes_in.skip(3 * RANGE_BYTES)
        assert bytes_in.read_exact(7) == DATA[15 + 3 * RANGE_BYTES :][:7]


def test_the_end_of_the_object_is_an_error() -> None:
    with stream(FakeStore()) as bytes_in:
        bytes_in.skip(len(DATA) - 1)
        with pytest.raises(EOFError):
            bytes_in.read_exact(2)


def test_ranges_that_arrive_out_of_order_are_given_in_order() -> None:
    store = FakeStore()
    store.gates[0] = threading.Event()
    with stream(store) as bytes_in, ThreadPoolExecutor(1) as thread:
        head = thread.submit(bytes_in.read_exact, 2 * RANGE_BYTES)
        assert {store.started.get(timeout=WAIT_S) for _ in range(3)} == {0, RANGE_BYTES, 2 * RANGE_BYTES}
        store.gates[0].set()
        assert head.result(WAIT_S) == DATA[: 2 * RANGE_BYTES]


class Held(bytes):
    """A range that is counted as long as anything holds it."""

    lock = threading.Lock()
    num_held = 0
    num_held_max = 0

    def __init__(self, _: bytes) -> None:
        with Held.lock:
            Held.num_held += 1
            Held.num_held_max = max(Held.num_held_max, Held.num_held)

    def __del__(self) -> None:
        with Held.lock:
            Held.num_held -= 1


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_never_holds_more_than_it_may(in_flight: int) -> None:
    class CountingStore(FakeStore):
        def read_range(self, uri: str, start: int, end: int, *, etag: str | None) -> bytes:
            return Held(super().read_range(uri, start, end, etag=etag))

    Held.num_held = Held.num_held_max = 0
    store = CountingStore()
    num_ranges = -(-len(DATA) // RANGE_BYTES)
    num_awaited = 0
    with stream(store, in_flight=in_flight) as bytes_in:
        for index in range(num_ranges):
            bytes_in.read_exact(min(RANGE_BYTES, len(DATA) - index * RANGE_BYTES))
            while num_awaited < min(index + 1 + in_flight, num_ranges):  # so many are read ahead by now
                store.started.get(timeout=WAIT_S)
                num_awaited += 1
            assert store.num_started() == 0
    assert Held.num_held_max <= in_flight + 1
    assert Held.num_held == 0


def test_an_error_of_the_store_passes_through() -> None:
    store = FakeStore()
    store.error = ObjectChangedError("the object was replaced")
    with stream(store) as bytes_in:
        assert bytes_in.read_exact(RANGE_BYTES) == DATA[:RANGE_BYTES]
        with pytest.raises(ObjectChangedError, match="replaced"):
            bytes_in.read_exact(1)


def test_a_store_that_gives_too_little_is_caught() -> None:
    with (
        stream(FakeStore(), size_bytes=len(DATA) + 1) as bytes_in,
        pytest.raises(StoreUnavailableError, match="instead of"),
    ):
        bytes_in.skip(len(DATA))


MD5 = hashlib.md5(DATA).hexdigest()
DAMAGED = DATA[:-1] + bytes([DATA[-1] ^ 1])


@pytest.mark.parametrize(
    ("data", "etag", "is_md5"),
    [(DATA, MD5, True), (DAMAGED, MD5, False), (DAMAGED, f"{MD5}-2", True), (DAMAGED, "tag", True)],
    ids=["whole", "no md5 under this encryption", "an upload in parts", "of no known form"],
)
def test_what_the_store_has_no_md5_of_is_not_compared(data: bytes, etag: str, is_md5: bool) -> None:
    store = FakeStore(data, etag)
    store.is_md5 = is_md5
    with stream(store) as bytes_in:
        bytes_in.skip(len(data))
        bytes_in.check()


def test_bytes_that_differ_from_the_md5_again_are_no_fault_of_the_way() -> None:
    with stream(FakeStore(DAMAGED, MD5)) as bytes_in:
        bytes_in.skip(len(DATA))
        with pytest.raises(DataError, match=r"read twice.*reading\.check_md5=false"):
            bytes_in.check()


def test_a_damaged_byte_is_found_by_the_md5_at_the_end() -> None:
    store = FakeStore(DAMAGED, MD5)
    with stream(store) as bytes_in:
        bytes_in.skip(len(DATA))
        store.data = DATA
        with pytest.raises(StoreUnavailableError, match="damaged on its way"):
            bytes_in.check()


class SlowMd5:
    """Takes bytes in when its gate is open; bytes that came before their forerunners were taken in are an error."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun: list[bytes] = []
        self.num_done = 0

    def update(self, data: bytes) -> None:
        assert len(self.begun) == self.num_done
        self.begun.append(data)
        assert self.gate.wait(WAIT_S)
        self.num_done += 1

    def hexdigest(self) -> str:
        return MD5 if b"".join(self.begun) == DATA and self.num_done == len(self.begun) else "0" * 32


def test_the_md5_is_taken_beside_the_reader_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    md5 = SlowMd5()
    monkeypatch.setattr("pipeline.ranges.hashlib.md5", lambda **_: md5)
    with stream(FakeStore(etag=MD5)) as bytes_in:
        assert bytes_in.read_exact(RANGE_BYTES) == DATA[:RANGE_BYTES]  # though not one byte of it is hashed
        assert md5.num_done == 0
        with ThreadPoolExecutor(1) as thread:
            rest = thread.submit(bytes_in.skip, len(DATA) - RANGE_BYTES)
            md5.gate.set()
            rest.result(WAIT_S)
        bytes_in.check()
    assert b"".join(md5.begun) == DATA


def test_close_waits_for_reads_under_way_and_begins_no_other() -> None:
    store = FakeStore()
    store.gates[RANGE_BYTES] = threading.Event()
    bytes_in = stream(store, in_flight=1)
    bytes_in.read_exact(1)
    assert [store.started.get(timeout=WAIT_S) for _ in range(2)] == [0, RANGE_BYTES]
    with ThreadPoolExecutor(1) as thread:
        closed = thread.submit(bytes_in.close)
        assert not closed.done()
        store.gates[RANGE_BYTES].set()
        closed.result(WAIT_S)
    assert store.num_started() == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("voxmill-range", "voxmill-md5"))]
